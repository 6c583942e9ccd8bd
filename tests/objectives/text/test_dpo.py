import pytest
import torch
import torch.nn.functional as F

from imgrl.objectives.text import DPO, TEXT_OBJECTIVES, TextBatch, TextObjective, token_log_probs


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(**changes):
    """Three pairs, all preferred rows first, then the others, as TRL lays them out."""
    fields = {
        "log_prob": (-draw(6, 4).abs()).requires_grad_(),
        "mask": torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]] * 2, dtype=torch.float64),
        "anchor": -draw(6, 4, seed=1).abs(),
        "group": torch.tensor([0, 1, 2, 0, 1, 2]),
    }
    return TextBatch(**(fields | changes))


def margin(batch):
    ratio = ((batch.log_prob - batch.anchor) * batch.mask).sum(-1)
    return ratio[:3] - ratio[3:]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_both_rows_of_a_pair_carry_dpos_loss_or_cdpos(smoothing):
    batch = pairs()
    loss, metrics = DPO(beta=0.3, label_smoothing=smoothing).loss(batch)
    logits = 0.3 * margin(batch)
    expected = -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)
    torch.testing.assert_close(loss, torch.cat([expected, expected]))
    (mine,) = torch.autograd.grad(loss.mean(), batch.log_prob, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.mean(), batch.log_prob, retain_graph=True)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(metrics["win_probability"], logits.sigmoid().repeat(2).detach())


def test_rewards_decide_where_there_are_some_and_equal_ones_count_half():
    batch = pairs()
    reward = torch.tensor([0.0, 5.0, 1.0, 2.0, 3.0, 1.0], dtype=torch.float64)  # second, first, neither
    loss, metrics = DPO(beta=0.3).loss(pairs(reward=reward, log_prob=batch.log_prob))
    logits = 0.3 * margin(batch)
    even = -0.5 * F.logsigmoid(logits[2]) - 0.5 * F.logsigmoid(-logits[2])
    expected = torch.stack([-F.logsigmoid(-logits[0]), -F.logsigmoid(logits[1]), even])
    torch.testing.assert_close(loss[:3], expected)
    torch.testing.assert_close(metrics["win_probability"][0], (-logits[0]).sigmoid().detach())


def test_naming_it_is_enough_and_it_says_what_it_is():
    assert isinstance(DPO(), TextObjective) and TEXT_OBJECTIVES["dpo"] is DPO
    assert DPO().needs == {"anchor"} and DPO.kind == "preference"
    assert all(isinstance(part, str) and part for part in DPO.anchored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta > 0"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"score_norm": "max"}, "max"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DPO(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": torch.tensor([0, 0, 0, 1, 1, 1])}, "whole groups of 2"),
        ({"group": None}, "TextBatch.group"),
        ({"anchor": None}, "TextBatch.anchor"),
        ({"anchor": torch.full((6, 4), float("nan"), dtype=torch.float64)}, "TextBatch.anchor, got NaN"),
    ],
)
def test_batches_it_cannot_learn_from_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DPO().loss(pairs(**change))


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    names = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 32)}}
    words = Tokenizer(models.WordLevel(names, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    data = Dataset.from_list([{"prompt": "w2 w3", "chosen": " w4 w5", "rejected": " w6"}])

    def build(loss_type, beta):
        torch.manual_seed(0)
        model, reference = (LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape)) for _ in range(2))
        with torch.no_grad():  # fresh models are nearly uniform and alike
            model.lm_head.weight.mul_(30)
            reference.lm_head.weight.mul_(20)
        args = DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("dpo")),
            loss_type=[loss_type],
            beta=beta,
            report_to=[],
            use_cpu=True,
            bf16=False,
        )
        return DPOTrainer(
            model=model, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer
        )

    return build


@pytest.mark.parametrize(
    ("loss_type", "norm", "beta"),
    [("sigmoid", "sum", 0.1), ("sigmoid", "sum", 1.0), ("sigmoid_norm", "mean", 2.0)],
)
def test_trls_trainer_has_the_same_loss_and_gradient(trl_trainer, loss_type, norm, beta):
    trainer = trl_trainer(loss_type, beta)
    model, reference = trainer.model, trainer.ref_model
    tokens = torch.randint(2, 32, (4, 7), generator=torch.Generator().manual_seed(1))
    completion = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]] * 2)
    completion[2, 5:] = 0
    attention = torch.ones_like(tokens)
    inputs = {"input_ids": tokens, "attention_mask": attention, "completion_mask": completion}
    theirs = trainer.compute_loss(model, dict(inputs))
    (their_slope,) = torch.autograd.grad(theirs, model.lm_head.weight)

    def log_probs(network):
        logits = network(input_ids=tokens, attention_mask=attention).logits
        return token_log_probs(logits[:, :-1], tokens[:, 1:])

    batch = TextBatch(
        log_prob=log_probs(model),
        anchor=log_probs(reference).detach(),
        mask=completion[:, 1:].float(),
        group=torch.tensor([0, 1, 0, 1]),
    )
    mine = DPO(beta=beta, score_norm=norm).loss(batch).loss.mean()
    (my_slope,) = torch.autograd.grad(mine, model.lm_head.weight)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(my_slope, their_slope, rtol=1e-4, atol=1e-7)
