import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.objectives.text import head_statistics, token_entropy, token_kl, token_log_probs, token_statistics
from imgrl.objectives.text.vocabulary import plan

EVERYTHING = ("log_prob", "entropy", "forward_kl", "reverse_kl", "log_partition")


def problem(seed=0, n=2, t=5, v=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits, anchor = (3 * torch.randn(2, n, t, v, generator=generator, dtype=torch.float64)).to(dtype)
    ids = torch.randint(v, (n, t), generator=generator)
    mask = (torch.rand(n, t, generator=generator) < 0.6).double()
    return logits, anchor, ids, mask


def plain(logits, anchor, ids, temperature=1.0):
    # By torch.distributions, on the whole tensor at once.
    policy = torch.distributions.Categorical(logits=logits / temperature)
    base = torch.distributions.Categorical(logits=anchor / temperature)
    return {
        "log_prob": policy.log_prob(ids),
        "entropy": policy.entropy(),
        "forward_kl": torch.distributions.kl_divergence(base, policy),
        "reverse_kl": torch.distributions.kl_divergence(policy, base),
        "log_partition": (logits / temperature).logsumexp(-1),
    }


def scalar(values, seed=1):
    # Different weights for every number, so that no two gradients can be exchanged unnoticed.
    generator = torch.Generator().manual_seed(seed)
    return sum(
        (values[name] * torch.randn(values[name].shape, generator=generator, dtype=torch.float64)).sum()
        for name in EVERYTHING
        if name in values
    )


@given(
    seed=st.integers(0, 999),
    chunk=st.sampled_from([None, 1, 3, 100]),
    temperature=st.sampled_from([1.0, 0.7]),
)
@settings(deadline=None, max_examples=30)
def test_values_and_gradients_are_those_of_the_whole_tensor_at_any_chunk_size(seed, chunk, temperature):
    logits, anchor, ids, _ = problem(seed)
    logits.requires_grad_()
    values = token_statistics(
        logits, ids, want=EVERYTHING, anchor_logits=anchor, temperature=temperature, chunk=chunk
    )
    expected = plain(logits, anchor, ids, temperature)
    for name in EVERYTHING:
        torch.testing.assert_close(values[name], expected[name], rtol=1e-9, atol=1e-11)
    (mine,) = torch.autograd.grad(scalar(values), logits)
    (theirs,) = torch.autograd.grad(scalar(expected), logits)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_chunk_size_changes_no_bit_of_the_values():
    logits, anchor, ids, _ = problem(dtype=torch.float32)
    whole = token_statistics(logits, ids, want=EVERYTHING, anchor_logits=anchor, chunk=100)
    for chunk in (1, 2, 7):
        parts = token_statistics(logits, ids, want=EVERYTHING, anchor_logits=anchor, chunk=chunk)
        assert all(torch.equal(parts[name], whole[name]) for name in EVERYTHING)


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_statistic_alone_has_the_gradient_it_has_among_all(name):
    logits, anchor, ids, _ = problem()
    logits.requires_grad_()
    alone = token_statistics(logits, ids, want={name}, anchor_logits=anchor, chunk=3)
    assert list(alone) == [name]
    among = token_statistics(logits, ids, want=EVERYTHING, anchor_logits=anchor, chunk=3)
    one, other = (torch.autograd.grad(scalar({name: x[name]}), logits)[0] for x in (alone, among))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_bf16_logits_are_computed_in_float32_and_get_a_bf16_gradient():
    logits, anchor, ids, _ = problem(dtype=torch.bfloat16)
    logits.requires_grad_()
    values = token_statistics(logits, ids, want=EVERYTHING, anchor_logits=anchor, chunk=3)
    exact = logits.detach().double().requires_grad_()
    expected = plain(exact, anchor.double(), ids)
    for name in EVERYTHING:
        assert values[name].dtype == torch.float32
        torch.testing.assert_close(values[name].double(), expected[name], rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(scalar(values), logits)
    (theirs,) = torch.autograd.grad(scalar(expected), exact)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine.double(), theirs, rtol=2**-7, atol=2**-9)  # one rounding to bf16


def test_masked_positions_are_zero_and_neither_they_nor_their_ids_have_any_influence():
    logits, anchor, ids, mask = problem()
    logits.requires_grad_()
    values = token_statistics(logits, ids, want=EVERYTHING, anchor_logits=anchor, mask=mask, chunk=2)
    expected = plain(logits, anchor, ids)
    for name in EVERYTHING:
        torch.testing.assert_close(values[name], expected[name] * mask, rtol=1e-9, atol=1e-11)
    broken, base = logits.detach().clone(), anchor.clone()
    broken[mask == 0], base[mask == 0] = float("nan"), float("nan")
    broken.requires_grad_()
    labels = ids.masked_fill(mask == 0, -100)
    again = token_statistics(broken, labels, want=EVERYTHING, anchor_logits=base, mask=mask, chunk=2)
    (one,) = torch.autograd.grad(scalar(values), logits)
    (other,) = torch.autograd.grad(scalar(again), broken)
    assert torch.equal(one, other) and not one[mask == 0].any() and one[mask > 0].any()


def test_a_sliced_view_of_the_logits_and_no_token_at_all_are_fine():
    logits, _, ids, _ = problem()
    logits.requires_grad_()
    values = token_log_probs(logits[:, :-1], ids[:, 1:], chunk=2)
    expected = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(values, expected)
    nothing = token_log_probs(logits, ids, mask=torch.zeros(ids.shape))
    (gradient,) = torch.autograd.grad(nothing.sum(), logits)
    assert not nothing.any() and not gradient.any()


def test_the_named_functions_are_the_statistics_of_their_name():
    logits, anchor, ids, _ = problem()
    expected = plain(logits, anchor, ids, 0.5)
    torch.testing.assert_close(token_log_probs(logits, ids, temperature=0.5), expected["log_prob"])
    torch.testing.assert_close(token_entropy(logits, temperature=0.5), expected["entropy"])
    for direction in ("forward", "reverse"):
        kl = token_kl(logits, anchor, direction=direction, temperature=0.5)
        torch.testing.assert_close(kl, expected[f"{direction}_kl"])


@pytest.mark.parametrize("shared", [True, False])
def test_from_hidden_states_values_and_all_gradients_are_those_of_the_product(shared):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, bias = draw(2, 5, 4).requires_grad_(), draw(11, 4), draw(11)
    trained = (hidden,) if shared else (hidden, weight.requires_grad_(), bias.requires_grad_())
    anchor_hidden, anchor_weight, anchor_bias = draw(2, 5, 4 if shared else 6), draw(11, 6), draw(11)
    ids = torch.randint(11, (2, 5), generator=generator)
    heads = {} if shared else {"anchor_weight": anchor_weight, "anchor_bias": anchor_bias}
    values = head_statistics(
        hidden, weight, ids, want=EVERYTHING, bias=bias, anchor_hidden=anchor_hidden, chunk=3, **heads
    )
    w, b = (weight, bias) if shared else (anchor_weight, anchor_bias)
    expected = plain(hidden @ weight.T + bias, anchor_hidden @ w.T + b, ids)
    for name in EVERYTHING:
        torch.testing.assert_close(values[name], expected[name], rtol=1e-9, atol=1e-11)
    mine = torch.autograd.grad(scalar(values), trained)
    theirs = torch.autograd.grad(scalar(expected), trained)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_frozen_output_matrix_costs_no_gradient_and_hidden_states_still_get_theirs():
    hidden = torch.randn(1, 3, 4, requires_grad=True)
    value = head_statistics(hidden, torch.randn(7, 4), torch.zeros(1, 3, dtype=torch.long), want=["log_prob"])
    assert torch.autograd.grad(value["log_prob"].sum(), hidden)[0].any()


def test_a_trained_output_matrix_cannot_be_the_anchors_as_well():
    hidden, ids = torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.long)
    weight = torch.randn(7, 4, requires_grad=True)
    with pytest.raises(ValueError, match="got both"):
        head_statistics(
            hidden, weight, ids, want=["forward_kl"], anchor_hidden=hidden, anchor_at=lambda index: hidden
        )
    with pytest.raises(ValueError, match="anchor_weight"):
        head_statistics(hidden, weight, ids, want=["forward_kl"], anchor_hidden=hidden)


def test_under_autocast_the_product_rounds_as_a_linear_layers_and_the_anchors_does_too():
    hidden = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = torch.nn.Linear(64, 33)
    ids = torch.ones(2, 3, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(hidden).float().log_softmax(-1)[..., 1]
        values = head_statistics(
            hidden,
            layer.weight,
            ids,
            want=["log_prob", "forward_kl"],
            bias=layer.bias,
            anchor_hidden=hidden.detach(),
            anchor_weight=layer.weight.detach(),
            anchor_bias=layer.bias.detach(),
        )
    assert values["log_prob"].dtype == torch.float32
    torch.testing.assert_close(values["log_prob"], expected, rtol=0, atol=1e-6)
    assert values["forward_kl"].abs().max() < 1e-6  # rounded differently the two would be 1e-4 apart
    mine = torch.autograd.grad(values["log_prob"].sum(), (hidden, layer.weight, layer.bias))
    theirs = torch.autograd.grad(expected.sum(), (hidden, layer.weight, layer.bias))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


class Saved:
    """Largest tensor kept for a backward pass that is not one of the inputs."""

    def __init__(self, *inputs):
        self.known = {x.untyped_storage().data_ptr() for x in inputs}
        self.largest = 0

    def __call__(self, x):
        if x.untyped_storage().data_ptr() not in self.known:
            self.largest = max(self.largest, x.numel())
        return x


@pytest.mark.parametrize("vocabulary", [64, 4096])
def test_nothing_of_the_size_of_the_vocabulary_is_kept_for_the_backward_pass(vocabulary):
    logits, anchor, ids, _ = problem(v=vocabulary, dtype=torch.bfloat16)
    logits.requires_grad_()
    saved = Saved(logits, anchor, ids)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        values = token_statistics(logits, ids, want=EVERYTHING, anchor_logits=anchor, chunk=2)
        scalar(values)
    assert saved.largest <= ids.numel()
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        scalar(plain(logits.float(), anchor.float(), ids))
    assert saved.largest == logits.numel()  # the plain computation does keep one: the counter can see it


@pytest.mark.parametrize("vocabulary", [256, 4096])
def test_no_tensor_on_the_way_there_or_back_is_larger_than_the_output_matrix(vocabulary):
    hidden = torch.randn(2, 50, 4, requires_grad=True)
    weight, ids = torch.randn(vocabulary, 4), torch.zeros(2, 50, dtype=torch.long)
    largest = Largest()
    with largest:
        value = head_statistics(hidden, weight, ids, want=["log_prob", "entropy"], chunk=2)
        sum(x.sum() for x in value.values()).backward()
    assert largest.numel == weight.numel()  # the output matrix's transpose; a chunk of logits is half of that
    with largest:
        (hidden @ weight.T).log_softmax(-1)
    assert largest.numel == 100 * vocabulary


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Size of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


def test_chunks_that_nobody_sized_hold_a_bounded_number_of_logits_but_no_thin_products():
    ids = torch.zeros(2, 100, dtype=torch.long)

    def longest(vocabulary, **more):
        _, chunks = plan(["log_prob"], False, ids, None, vocabulary, 1.0, None, **more)
        assert sum(len(rows) for rows, _ in chunks) == 200
        return max(len(rows) for rows, _ in chunks)

    assert longest(1000) == 200 and longest(2**16) == 16 and longest(2**22) == 1
    assert longest(2**16, least=32) == longest(2**22, least=32) == 32


def test_the_anchor_gets_no_gradient():
    logits, anchor, ids, _ = problem()
    anchor.requires_grad_()
    logits.requires_grad_()
    scalar(token_statistics(logits, ids, want=EVERYTHING, anchor_logits=anchor)).backward()
    assert anchor.grad is None and logits.grad is not None


def test_cross_entropy_of_torch_agrees():
    logits, _, ids, _ = problem()
    expected = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    torch.testing.assert_close(-token_log_probs(logits, ids), expected)


def test_the_log_probabilities_of_trl_agree():
    pytest.importorskip("trl")
    from trl.trainer.utils import selective_log_softmax_and_entropy

    logits, _, ids, _ = problem(dtype=torch.float32)
    log_prob, entropy = selective_log_softmax_and_entropy(logits, ids, temperature=0.8)
    torch.testing.assert_close(token_log_probs(logits, ids, temperature=0.8), log_prob)
    torch.testing.assert_close(token_entropy(logits, temperature=0.8), entropy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"want": ["logprob"]}, "logprob"),
        ({"want": ["forward_kl"]}, "anchor"),
        ({"temperature": 0.0}, "temperature"),
        ({"chunk": 0}, "chunk"),
        ({"ids": torch.full((2, 5), 11)}, r"\[0, 11\), got 11 to 11"),
        ({"ids": torch.full((2, 5), -100)}, "mask what is no token"),
        ({"anchor_logits": torch.zeros(2, 5, 12)}, "12"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_sentence(change, message):
    logits, _, ids, _ = problem(dtype=torch.float32)
    given_ = {"ids": ids, "want": ["log_prob"]} | change
    with pytest.raises(
        (ValueError, TypeError), match=message
    ):  # under pytest a shape annotation may speak first
        token_statistics(logits, **given_)


def test_an_unknown_kl_direction_is_refused():
    with pytest.raises((ValueError, TypeError), match="sideways"):
        token_kl(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), direction="sideways")
