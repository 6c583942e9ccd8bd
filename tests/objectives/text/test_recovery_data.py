"""The table of test_recovery for objectives that learn from data: TRL's own losses of SFT and DPO on our numbers."""

import contextlib
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from tokenwise import batch_of, drawn, gradient, moved

from imgrl.objectives.text import ASFT, DFT, DPO, FSFT, SFT, SFTKL, reduce

# A setting of ours, and TRL's settings that are the same loss. TRL smooths labels in no loss that sees one pair alone,
# but aot_unpaired, which sorts the pairs of a batch, is cDPO where there is one.
DEMONSTRATIONS = {
    "sft": (SFT(), "nll"),
    "dft": (DFT(), "dft"),
    "asft with weight 0": (ASFT(kl_weight=0.0), "dft"),
    "sft + kl with weight 0": (SFTKL(kl_weight=0.0), "nll"),
}
PAIRS = {
    "dpo": (DPO(beta=0.3), {"beta": 0.3, "loss_type": "sigmoid"}),
    "cdpo": (DPO(beta=0.3, label_smoothing=0.1), {"beta": 0.3, "loss_type": "aot_unpaired"}),
    "dpo by mean": (DPO(beta=2.0, score_norm="mean"), {"beta": 2.0, "loss_type": "sigmoid_norm"}),
}
ONE = SimpleNamespace(
    num_processes=1, device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, parallelism_config=None
)


def said(batch):
    """What TRL's fused output layer returns, as far as a loss reads it."""
    nothing = torch.zeros_like(batch.mask)
    return SimpleNamespace(
        log_probs=batch.log_prob * batch.mask,
        label_mask=batch.mask,
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
    )


def trainer_of(**more):
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ONE,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **more,
    )


def trls_supervised(trainer, batch, loss_type):
    args = SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=True)
    this = trainer_of(
        args=args,
        compute_loss_func=None,
        label_smoother=None,
        get_tp_size=lambda: 1,
        maybe_activation_offload_context=contextlib.nullcontext(),
    )
    inputs = {"labels": batch.mask.long(), "attention_mask": batch.mask.long()}
    return trainer.compute_loss(this, lambda **_: said(batch), inputs)


def trls_pair(trainer, batch, rows, *, beta, loss_type):
    """TRL's loss of one pair; the position that predicts nothing comes first."""
    part = SimpleNamespace(log_prob=batch.log_prob[rows], mask=batch.mask[rows])
    reference = (batch.anchor[rows] * part.mask).sum(-1)
    this = trainer_of(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=0.1,
        use_weighting=False,
        beta=beta,
    )
    inputs = {
        "completion_mask": torch.nn.functional.pad(part.mask, (1, 0)),
        "input_ids": torch.zeros(2, part.mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(2, part.mask.shape[1] + 1),
        "ref_chosen_logps": reference[:1],
        "ref_rejected_logps": reference[1:],
    }
    return trainer._compute_loss(this, lambda **_: said(part), inputs, False)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_losses_of_demonstrations_are_trls(name):
    trainer = pytest.importorskip("trl.trainer.sft_trainer").SFTTrainer
    objective, loss_type = DEMONSTRATIONS[name]
    logits, ids, mask, advantage = drawn(4)
    batch = batch_of(logits, ids, mask, advantage)
    theirs = trls_supervised(trainer, batch, loss_type)
    torch.testing.assert_close(reduce(objective.loss(batch).loss, mask, how="token"), theirs)
    slope = torch.autograd.grad(theirs, logits, retain_graph=True)[0]
    assert slope.abs().max() > 1e-3
    torch.testing.assert_close(gradient(objective, logits, batch), slope)


@pytest.mark.parametrize("name", PAIRS)
def test_losses_of_pairs_are_trls(name):
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    objective, settings = PAIRS[name]
    logits, ids, mask, advantage = drawn(5)
    batch = batch_of(logits, ids, mask, advantage, base=moved(logits, 0.8, 9))
    pairs = [batch.group == number for number in range(3)]
    theirs = torch.stack([trls_pair(trainer, batch, rows, **settings) for rows in pairs]).mean()
    ours = objective.loss(batch).loss.mean()
    torch.testing.assert_close(ours, theirs)
    slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    assert slopes[0].abs().max() > 1e-3
    torch.testing.assert_close(slopes[0], slopes[1])


def test_f_sft_by_the_total_variation_steps_as_trls_sft():
    trainer = pytest.importorskip("trl.trainer.sft_trainer").SFTTrainer
    logits, ids, mask, advantage = drawn(6)
    batch = batch_of(logits, ids, mask, advantage, base=moved(logits, 0.8, 9))
    theirs = torch.autograd.grad(trls_supervised(trainer, batch, "nll"), logits, retain_graph=True)[0]
    torch.testing.assert_close(gradient(FSFT(divergence="total_variation"), logits, batch), theirs)
