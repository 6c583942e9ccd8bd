"""Statistics over blocks of the vocabulary, against whole tensors and torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.objectives.text import blocked, head_statistics
from imgrl.objectives.text.blocked import BLOCKWISE, blocks_of, blockwise
from imgrl.objectives.text.vocabulary import plan

NAMES = sorted(BLOCKWISE)


def draw(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def whole(names, logits, ids, temperature):
    policy = torch.distributions.Categorical(logits=logits / temperature)
    values = {
        "log_prob": policy.log_prob(ids),
        "entropy": policy.entropy(),
        "log_partition": (logits / temperature).logsumexp(-1),
    }
    return [values[name] for name in names]


@given(
    seed=st.integers(0, 999),
    names=st.sets(st.sampled_from(NAMES), min_size=1),
    columns=st.sampled_from([1, 3, 10, 11, 100]),
    rows=st.sampled_from([1, 4, 100]),
    temperature=st.sampled_from([1.0, 0.7]),
    trained=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_values_and_gradients_are_those_of_whole_rows(seed, names, columns, rows, temperature, trained):
    hidden, weight, bias = draw(seed, 2, 5, 4).requires_grad_(), draw(seed + 1, 11, 4), draw(seed + 2, 11)
    leaves = [hidden, weight.requires_grad_(), bias.requires_grad_()] if trained else [hidden]
    ids = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(seed))
    mask = torch.rand(2, 5, generator=torch.Generator().manual_seed(seed)) < 0.7
    names, chunks = plan(names, False, ids, mask.double(), 11, temperature, rows)
    found = blockwise(names, chunks, hidden, weight, bias, ids, temperature=temperature, columns=columns)
    expected = [value * mask for value in whole(names, hidden @ weight.T + bias, ids, temperature)]
    factors = [draw(seed + 3 + i, 2, 5) for i in range(len(names))]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    mine, theirs = (
        torch.autograd.grad(sum((f * v).sum() for f, v in zip(factors, values, strict=True)), leaves)
        for values in (found, expected)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_nobody_reads_back_changes_no_gradient(name):
    hidden, weight, ids = draw(0, 1, 4, 3).requires_grad_(), draw(1, 9, 3), torch.tensor([[0, 3, 8, 4]])
    _, chunks = plan(NAMES, False, ids, None, 9, 1.0, 2)
    values = blockwise(NAMES, chunks, hidden, weight, None, ids, temperature=1.0, columns=4)
    (mine,) = torch.autograd.grad(values[NAMES.index(name)].sum(), hidden)
    (theirs,) = torch.autograd.grad(whole([name], hidden @ weight.T, ids, 1.0)[0].sum(), hidden)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_large_logits_overflow_nothing_in_whatever_block_the_largest_is():
    hidden = torch.tensor([[[1.0], [-1.0], [0.0]]], requires_grad=True)
    weight = torch.tensor([[-3e4], [0.0], [2e4], [3e4]])
    ids = torch.tensor([[3, 0, 1]])
    _, chunks = plan(NAMES, False, ids, None, 4, 1.0, None)
    entropy, partition, log_prob = blockwise(
        NAMES, chunks, hidden, weight, None, ids, temperature=1.0, columns=1
    )
    even = math.log(4)  # the last position has four equal logits
    torch.testing.assert_close(log_prob, torch.tensor([[0.0, 0.0, -even]]))
    torch.testing.assert_close(entropy, torch.tensor([[0.0, 0.0, even]]))
    torch.testing.assert_close(partition, torch.tensor([[3e4, 3e4, even]]))
    (gradient,) = torch.autograd.grad((entropy + log_prob + partition).sum(), hidden)
    assert bool(gradient.isfinite().all())


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Most elements of a tensor that any operation made; views of the output matrix aside."""

    def __init__(self, weight):
        super().__init__()
        self.storage, self.numel = weight.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() != self.storage:
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize("vocabulary", [2**12, 2**14])
def test_beside_a_frozen_output_matrix_nothing_grows_with_the_vocabulary(vocabulary, monkeypatch):
    monkeypatch.setattr(blocked, "chunk_logits", lambda device: 2**12)
    hidden, ids = torch.randn(2, 50, 4, requires_grad=True), torch.zeros(2, 50, dtype=torch.long)
    weight = torch.randn(vocabulary, 4)
    with Largest(weight) as largest:
        values = head_statistics(hidden, weight, ids, want=NAMES)
        sum(value.sum() for value in values.values()).backward()
    blocks = blocks_of(hidden.device, None)
    assert largest.numel == 100 * blocks.columns <= blocks.rows * blocks.columns <= 2**12


def test_whole_rows_are_rounded_as_beside_a_kl():
    hidden, anchor = torch.randn(2, 64, 256), torch.randn(2, 64, 256)
    weight, ids = torch.randn(3000, 256), torch.zeros(2, 64, dtype=torch.long)
    beside = head_statistics(hidden, weight, ids, want=["log_prob", "reverse_kl"], anchor_hidden=anchor)
    alone = head_statistics(hidden, weight, ids, want=["log_prob"], whole=True)
    in_blocks = head_statistics(hidden, weight, ids, want=["log_prob"])
    assert torch.equal(alone["log_prob"], beside["log_prob"])
    torch.testing.assert_close(in_blocks["log_prob"], alone["log_prob"], rtol=1e-5, atol=1e-4)
