import pytest
import torch
import torch.nn.functional as F
from supervised import gradient, problem, scalar_loss

from imgrl.objectives.text import DFT, SFT, TEXT_OBJECTIVES, TextBatch, TextObjective, sft_loss
from imgrl.objectives.text.asft import ASFT

EACH = [kind() for kind in TEXT_OBJECTIVES.values() if kind.kind == "supervised"]


def names(objective):
    return objective.name


def test_sft_is_the_cross_entropy_of_torch_over_the_loss_tokens():
    live, base, ids, mask = problem()
    labels = ids.masked_fill(mask == 0, -100)
    expected = F.cross_entropy(live.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(scalar_loss(SFT(), live, base, ids, mask), expected)
    (theirs,) = torch.autograd.grad(expected, live)
    torch.testing.assert_close(gradient(SFT(), live, base, ids, mask), theirs)


def test_the_gradient_of_dft_is_that_of_minus_the_probability_though_its_value_is_not():
    live, base, ids, mask = problem()
    probability = live.softmax(-1).gather(-1, ids[..., None])[..., 0]
    (expected,) = torch.autograd.grad(-(probability * mask).sum() / mask.sum(), live, retain_graph=True)
    torch.testing.assert_close(gradient(DFT(), live, base, ids, mask), expected)
    # By hand: p_y (p - e_y) at every loss token.
    p, target = live.detach().softmax(-1), F.one_hot(ids, live.shape[-1])
    by_hand = probability.detach()[..., None] * (p - target) * mask[..., None] / mask.sum()
    torch.testing.assert_close(expected, by_hand)
    value = scalar_loss(DFT(), live, base, ids, mask)
    assert value.item() == pytest.approx(
        (-probability * probability.log() * mask).sum().item() / mask.sum().item()
    )
    assert value > 0 > -(probability * mask).sum()


def test_the_weight_is_computed_in_float32_where_bf16_would_round_it():
    logits = torch.tensor([[[4.0, 0.0, -3.0]]], dtype=torch.bfloat16, requires_grad=True)
    ids, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
    value = scalar_loss(DFT(), logits, None, ids, mask)
    p = torch.tensor([4.0, 0.0, -3.0], dtype=torch.float64).softmax(-1)[0]
    assert value.item() == pytest.approx(-(p * p.log()).item(), rel=1e-6)


def test_a_token_of_probability_zero_is_a_trap_for_dft_and_not_for_sft():
    live, ids, mask = (
        torch.tensor([[[-60.0, 0.0]]], dtype=torch.float64),
        torch.zeros(1, 1, dtype=torch.long),
        torch.ones(1, 1, dtype=torch.float64),
    )
    live.requires_grad_()
    assert gradient(DFT(), live, None, ids, mask).abs().max() < 1e-25
    torch.testing.assert_close(gradient(SFT(), live, None, ids, mask)[0, 0, 0].item(), -1.0)


@pytest.mark.parametrize("objective", EACH, ids=names)
def test_masked_positions_have_no_influence(objective):
    live, base, ids, mask = problem()
    before = scalar_loss(objective, live, base, ids, mask)
    slope = gradient(objective, live, base, ids, mask)
    noise = 5 * torch.randn(live.shape, dtype=torch.float64) * (mask == 0)[..., None]
    after = scalar_loss(objective, live + noise, base - noise, ids.masked_fill(mask == 0, 0), mask)
    assert torch.equal(before, after)
    assert not slope[mask == 0].any() and slope[mask > 0].any()


@pytest.mark.parametrize("objective", EACH, ids=names)
def test_nan_outside_the_mask_spreads_neither_to_the_loss_nor_to_gradients(objective):
    live, base, ids, mask = problem()
    fields = {name: torch.zeros_like(mask) for name in ("log_prob", *objective.needs)}
    fields = {name: x.masked_fill(mask == 0, float("nan")).requires_grad_() for name, x in fields.items()}
    loss, metrics = objective.loss(TextBatch(mask=mask, **fields))
    loss.sum().backward()
    assert not fields["log_prob"].grad.isnan().any()
    assert not loss.isnan().any() and not any(x.isnan().any() for x in metrics.values())
    assert not any(x.requires_grad for x in metrics.values())
    if loss.ndim == 2:
        assert not loss[mask == 0].any()


@pytest.mark.parametrize("reduction", ["token", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("kind", [type(objective) for objective in EACH], ids=names)
def test_halves_that_share_the_global_denominator_add_up_to_the_whole_batch(kind, reduction):
    objective = kind(reduction=reduction)
    live, base, ids, mask = problem(n=4)
    total = mask.sum() if reduction == "token" else float(len(mask))
    whole = gradient(objective, live, base, ids, mask)
    parts = [
        gradient(objective, live[rows].detach().requires_grad_(), base[rows], ids[rows], mask[rows], total)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_mask_counts_the_predicted_tokens_of_a_response_of_two():
    # Tokens: two of a prompt, two of the response. Logits at positions 1 and 2 predict them; both count, no other.
    tokens = torch.tensor([[3, 1, 2, 4]])
    logits = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.cat([tokens[:, 1:], torch.full((1, 1), -100)], 1)
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    loss = scalar_loss(SFT(), logits, None, ids, mask)
    log_p = logits.log_softmax(-1)
    torch.testing.assert_close(loss, -(log_p[0, 1, 2] + log_p[0, 2, 4]) / 2)


@pytest.mark.parametrize("objective", EACH, ids=names)
def test_naming_an_objective_is_enough_and_it_says_what_it_is(objective):
    assert isinstance(objective, TextObjective)
    assert TEXT_OBJECTIVES[objective.name] is type(objective)
    assert all(isinstance(part, str) and part for part in objective.anchored)
    live, base, ids, mask = problem()
    assert scalar_loss(objective, live, base, ids, mask).isfinite()


@pytest.mark.parametrize("objective", [o for o in EACH if o.needs], ids=names)
def test_a_field_that_was_not_filled_is_named(objective):
    with pytest.raises(ValueError, match=next(iter(objective.needs))):
        objective.loss(TextBatch(log_prob=torch.zeros(1, 2), mask=torch.ones(1, 2)))


def test_a_weight_that_does_not_exist_and_a_missing_kl_are_refused():
    with pytest.raises((ValueError, TypeError), match="half"):
        sft_loss(torch.zeros(1, 1), weight="half")
    with pytest.raises(ValueError, match="kl_weight=0.1"):
        sft_loss(torch.zeros(1, 1), kl_weight=0.1)


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 32)}}, "<pad>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # a fresh model is nearly uniform, where weights would hardly matter
    data = Dataset.from_list([{"input_ids": [2, 3, 4], "labels": [2, 3, 4]}])

    def build(loss_type):
        folder = str(tmp_path_factory.mktemp("sft"))
        args = SFTConfig(
            output_dir=folder,
            loss_type=loss_type,
            report_to=[],
            use_cpu=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)

    return build


@pytest.mark.parametrize(
    ("objective", "loss_type"), [(SFT(), "nll"), (DFT(), "dft"), (ASFT(kl_weight=0), "dft")]
)
def test_trls_trainer_has_the_same_loss_and_gradient(trl_trainer, objective, loss_type):
    trainer = trl_trainer(loss_type)
    model = trainer.model
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 32, (3, 6), generator=generator)
    labels = tokens.clone()
    labels[0, :3] = labels[1, :1] = labels[2, 4:] = -100
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    head = model.lm_head.weight
    for denominator in (None, torch.tensor(40)):
        theirs = trainer.compute_loss(model, dict(inputs), num_items_in_batch=denominator)
        (their_slope,) = torch.autograd.grad(theirs, head)
        logits = model(input_ids=tokens, attention_mask=inputs["attention_mask"]).logits
        ids = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
        mask = (ids != -100).float()
        given = None if denominator is None else float(denominator)
        mine = scalar_loss(objective, logits, None, ids, mask, given)
        (my_slope,) = torch.autograd.grad(mine, head)
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(my_slope, their_slope, rtol=1e-4, atol=1e-7)
