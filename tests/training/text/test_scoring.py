"""Statistics computed where the output layer stands, against those of the model's whole logits."""

import copy
import types

import pytest
import torch

transformers = pytest.importorskip("transformers")

from imgrl.objectives.text import MetaDistill  # noqa: E402
from imgrl.training.text.copies import WeightCopy  # noqa: E402
from imgrl.training.text.heads import Rows, plain_head  # noqa: E402
from imgrl.training.text.scoring import distilled_fields, live_fields, statistics  # noqa: E402

NEEDS = ("entropy", "forward_kl", "reverse_kl", "previous_kl", "anchor")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(vocabulary=50, **more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=vocabulary, **{"initializer_range": 0.3, **SIZES, **more})
    return transformers.LlamaForCausalLM(config).train()


def biased():
    model = llama()
    model.lm_head = torch.nn.Linear(16, 50)
    return model


def adapted(targets):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(llama(), config).train()


def checkpointed():
    model = llama()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def capped():
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=50, final_logit_softcapping=3.0, head_dim=8, num_key_value_heads=2, **SIZES
    )
    return transformers.Gemma2ForCausalLM(config).train()


def scaled():
    torch.manual_seed(0)
    return transformers.CohereForCausalLM(
        transformers.CohereConfig(vocab_size=50, logit_scale=0.25, num_key_value_heads=2, **SIZES)
    ).train()


PLAIN = {
    "untied": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "bias": biased,
    "adapter": lambda: adapted(["q_proj", "down_proj"]),
    "checkpointed layers": checkpointed,
}
OTHER = {"adapter on the head": lambda: adapted(["q_proj", "lm_head"]), "capped": capped, "scaled": scaled}


def rows_of(n=3, length=9, kept=5):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 50, (n, length), generator=generator)
    mask = (torch.arange(kept) < torch.tensor([5, 2, 4])[:, None]).bool()
    tokens = torch.where(mask, ids[:, -kept:], torch.tensor(-100))
    return Rows(input_ids=ids, attention_mask=torch.ones_like(ids), tokens=tokens, mask=mask)


def moved(model, by):
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(by * torch.sin(i + torch.arange(parameter.numel())).view_as(parameter))


def copies(model):
    base = WeightCopy(model)
    moved(model, 0.02)
    previous = WeightCopy(model)
    moved(model, 0.02)
    return base, previous


def by_hand(model, rows, base, previous, temperature):
    """The fields from whole logits, by torch.distributions."""

    def distribution():
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        return torch.distributions.Categorical(logits=logits[:, -rows.tokens.shape[1] - 1 : -1] / temperature)

    with base.applied(model):
        anchor = distribution()
    with previous.applied(model):
        before = distribution()
    live, kl = distribution(), torch.distributions.kl_divergence
    tokens = rows.tokens.clamp(min=0)
    fields = {
        "log_prob": live.log_prob(tokens),
        "entropy": live.entropy(),
        "forward_kl": kl(anchor, live),
        "reverse_kl": kl(live, anchor),
        "previous_kl": kl(live, before),
        "anchor": anchor.log_prob(tokens),
    }
    return {name: value * rows.mask for name, value in fields.items()}


def loss_of(fields):
    return sum((i + 1) * fields[name].sum() for i, name in enumerate(sorted(fields)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_fields_and_gradients_are_those_of_the_whole_logits(name, temperature):
    model = (PLAIN | OTHER)[name]()
    assert (plain_head(model) is not None) == (name in PLAIN)
    rows, (base, previous) = rows_of(), copies(model)
    fields = live_fields(model, rows, needs=NEEDS, temperature=temperature, base=base, previous=previous)
    other = copy.deepcopy(model)
    expected = by_hand(other, rows, base, previous, temperature)
    torch.testing.assert_close(fields, expected, rtol=1e-4, atol=1e-5)
    assert not fields["anchor"].requires_grad
    loss_of(fields).backward()
    loss_of(expected).backward()
    grads, theirs = ({n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (model, other))
    torch.testing.assert_close(grads, theirs, rtol=1e-3, atol=1e-4)
    assert "forward" not in vars(model.get_output_embeddings())  # generation gets logits again


def test_in_half_precision_the_anchor_is_scored_as_the_policy_is(monkeypatch):
    """Under autocast as accelerate sets it, around the forward pass alone; equal policies then have equal numbers."""
    from imgrl.training.text import scoring

    found = []
    for whole in (False, True):
        model = llama()
        half = torch.autocast("cpu", dtype=torch.bfloat16)(type(model).forward)
        model.forward = types.MethodType(half, model)
        if whole:
            monkeypatch.setattr(scoring, "plain_head", lambda model: None)
        fields = live_fields(
            model, rows_of(), needs=NEEDS, base=WeightCopy(model), previous=WeightCopy(model)
        )
        assert torch.equal(fields["anchor"], fields["log_prob"])
        assert fields["reverse_kl"].abs().max() < 1e-6  # float32 sums of bfloat16 logits
        found.append(fields)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_rollouts_are_scored_the_same_in_any_batch():
    model, rows = llama(), rows_of()
    base = WeightCopy(model)
    expected = by_hand(model, rows, base, base, 0.7)
    for batch in (1, 2, 3):
        found = statistics(model, rows, ["log_prob", "entropy"], temperature=0.7, batch=batch)
        torch.testing.assert_close(found["log_prob"], expected["log_prob"].detach())
        torch.testing.assert_close(found["entropy"], expected["entropy"].detach())
        assert not found["entropy"].requires_grad


def test_an_error_inside_the_forward_pass_gives_the_output_layer_back():
    model, rows = llama(), rows_of()
    bad = Rows(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        tokens=rows.tokens + 1000,
        mask=rows.mask,
    )
    with pytest.raises(ValueError, match="Expected tokens in"):
        live_fields(model, bad, needs=())
    assert model(input_ids=rows.input_ids).logits.shape[-1] == 50


def largest(distilled=False):
    """Elements of the largest tensor that a live pass with both anchors, or one towards a mixture, makes or keeps.

    Parameters aside.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.shape not in shapes:
                    self.most = max(self.most, tensor.numel())
            return out

    model = llama(2000)
    shapes = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.ndim == 2}
    ids = torch.randint(2, 50, (2, 100), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 96, dtype=torch.bool)
    rows = Rows(input_ids=ids, attention_mask=torch.ones_like(ids), tokens=ids[:, 4:], mask=mask)
    snapshot, watch = WeightCopy(model), Watch()
    with watch:
        if distilled:
            options = {
                "objective": MetaDistill(strength=0.3),
                "teacher": llama(2000),
                "generations": [snapshot],
            }
            distilled_fields(model, rows, **options)["target_kl"].sum().backward()
        else:
            fields = live_fields(model, rows, needs=NEEDS, base=snapshot, previous=snapshot)
            loss_of(fields).backward()
    return watch.most


def test_no_tensor_but_the_output_matrix_and_one_chunk_grows_with_the_vocabulary(monkeypatch):
    from imgrl.objectives.text import vocabulary
    from imgrl.training.text import scoring

    monkeypatch.setitem(vocabulary.CHUNK_LOGITS, "cpu", 1)
    assert largest() == 32 * 2000  # a chunk holds 32 positions at least
    assert largest(distilled=True) == 2 * 32 * 2000  # of the last generation and of the teacher
    monkeypatch.setattr(scoring, "plain_head", lambda model: None)
    assert largest() >= 2 * 96 * 2000  # the watch sees whole logits where they are made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_target_of_generations_and_a_teacher_is_their_mean(temperature):
    """Against the mixture and its divergence written down on the logits of four separate models."""
    generator = torch.Generator().manual_seed(5)
    live, newer, older, teacher = (llama(initializer_range=0.1 + 0.1 * i).eval() for i in range(4))
    ids = torch.randint(50, (2, 7), generator=generator)
    whole = torch.ones_like(ids)
    rows = Rows(input_ids=ids, attention_mask=whole, tokens=ids[:, 3:], mask=whole[:, 3:].bool())
    z, *others = (
        (model(ids).logits[:, 2:-1] / temperature).double() for model in (live, newer, older, teacher)
    )
    mixed = sum(w * other.softmax(-1) for w, other in zip((0.35, 0.35, 0.3), others, strict=True)).detach()
    expected = (mixed * (mixed.log() - z.log_softmax(-1))).sum(-1)
    found = distilled_fields(
        live,
        rows,
        objective=MetaDistill(strength=0.3, operator="history", history=(0.5, 0.5)),
        teacher=teacher,
        generations=[WeightCopy(newer), WeightCopy(older)],
        temperature=temperature,
    )
    torch.testing.assert_close(found["target_kl"].double(), expected, atol=1e-5, rtol=1e-4)
    slopes = []
    for total in (found["target_kl"].sum(), expected.sum()):
        live.zero_grad()
        total.backward()
        slopes.append([p.grad.clone() for p in live.parameters()])
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
