from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tokenwise import V, batch_of, chosen, drawn, gradient, moved

from imgrl.anchor import Constant, sampled_kl
from imgrl.objectives.text import GRPO, KDRL, SPINE, TRRD, TTRL, ReMix, reduce

NO_BAND = {"band_low": 0.0, "band_high": 0.0}
ALL = {"selection": "all", **NO_BAND}
# One table: a setting of ours, and TRL's settings that are the same update.
TABLE = {
    "grpo": (GRPO(), {"loss_type": "grpo"}),
    "grpo with kl": (GRPO(kl_weight=0.04), {"loss_type": "grpo", "beta": 0.04}),
    "grpo with unbiased kl": (
        GRPO(kl_weight=0.04, kl_weighted=True),
        {"loss_type": "grpo", "beta": 0.04, "unbiased": True},
    ),
    "dapo": (GRPO(clip_high=0.28, reduction="token"), {"loss_type": "dapo", "high": 0.28}),
    "ppo": (ReMix(kl_weight=0.0, replay=0.0, passes=1), {"loss_type": "dapo"}),
    "ppo with entropy": (
        ReMix(kl_weight=0.0, replay=0.0, passes=1, entropy_weight=0.02),
        {"loss_type": "dapo", "entropy": 0.02},
    ),
    "remix with lam 1": (
        ReMix(kl_weight=0.04, lam=Constant(value=1.0), replay=0.0, passes=1),
        {"loss_type": "dapo", "beta": 0.04},
    ),
    "trrd with alpha 1": (TRRD(alpha=1.0), {"loss_type": "grpo", "high": 0.28}),
    "trrd whose teacher is the old policy": (
        TRRD(alpha=0.3, limit=None, kl_weight=0.04),
        {"loss_type": "grpo", "high": 0.28, "beta": 0.04},
    ),
    "kdrl whose teacher is the reference": (
        KDRL(kl="k3", kl_weight=0.04),
        {"loss_type": "dapo", "beta": 0.04},
    ),
    "ttrl": (TTRL(kl_weight=0.04), {"loss_type": "dapo", "beta": 0.04}),
    "ttrl by sequence": (TTRL(kl_weight=0.0, reduction="sequence_mean"), {"loss_type": "grpo"}),
    "spine on all tokens": (SPINE(kl_weight=0.04, **ALL), {"loss_type": "dapo", "beta": 0.04}),
}


@pytest.fixture(scope="module")
def trl_trainer():
    return pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer


def trls(
    trainer,
    batch,
    *,
    loss_type,
    low=0.2,
    high=0.2,
    beta=0.0,
    unbiased=False,
    entropy=0.0,
    forks=1.0,
    old=True,
):
    """TRL's own ``_compute_loss`` on our numbers, without a model; its loss and its share of clipped tokens."""
    log = defaultdict(list)
    one = SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, **_: x,
    )
    this = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.log_prob, batch.entropy, None),
        args=SimpleNamespace(use_bias_correction_kl=unbiased, delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=one,
        importance_sampling_level="token",
        loss_type=loss_type,
        beta=beta,
        epsilon_low=low,
        epsilon_high=high,
        top_entropy_quantile=forks,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=entropy > 0,
        use_adaptive_entropy=False,
        entropy_coef=entropy,
        _metrics={"train": log},
    )
    this.get_high_entropy_mask = partial(trainer.get_high_entropy_mask, this)
    n, t = batch.mask.shape
    inputs = {
        "prompt_ids": torch.zeros(n, 1, dtype=torch.long),
        "prompt_mask": torch.ones(n, 1, dtype=torch.long),
        "completion_ids": torch.zeros(n, t, dtype=torch.long),
        "completion_mask": batch.mask,
        "advantages": batch.advantage,
        "ref_per_token_logps": batch.anchor,
        "num_items_in_batch": batch.mask.sum(),
        **({"old_per_token_logps": batch.old} if old else {}),
    }
    return trainer._compute_loss(this, None, inputs), log


def same_as_trls(trainer, objective, logits, batch, **settings):
    """Loss, gradient of every logit and, where something is clipped, its share."""
    out = objective.loss(batch)
    ours = reduce(out.loss, batch.mask, how=objective.reduction)
    theirs, log = trls(trainer, batch, **settings)
    torch.testing.assert_close(ours, theirs)
    slope = torch.autograd.grad(theirs, logits, retain_graph=True)[0]
    assert slope.abs().max() > 1e-3
    torch.testing.assert_close(gradient(objective, logits, batch), slope)
    share = reduce(out.metrics["clipped"], batch.mask, how="token").item()
    assert log["clip_ratio/region_mean"] == [pytest.approx(share)]
    return share


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("far", [0.0, 0.6], ids=["first step", "later step"])
def test_one_table_of_settings_is_trls_loss(name, far, trl_trainer):
    objective, settings = TABLE[name]
    logits, ids, mask, advantage = drawn(3)
    old, base = moved(logits, far), moved(logits, 0.5, 9)
    # Nothing replayed; the teacher is the old policy or the reference; the KL to the base is estimated as TRL does.
    teacher = base if objective.name == "kdrl" else old
    estimate = sampled_kl(chosen(logits, ids) - chosen(base, ids), estimator="k3")
    batch = batch_of(
        logits,
        ids,
        mask,
        advantage,
        old=old,
        base=base,
        current=chosen(old, ids),
        teacher=chosen(teacher, ids),
        reverse_kl=estimate,
    )
    share = same_as_trls(trl_trainer, objective, logits, batch, old=far > 0, **settings)
    assert (share > 0) == (far > 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_most_uncertain_fifth_of_one_response_is_trls_entropy_quantile(seed, trl_trainer):
    """TRL ranks a batch's tokens together, SPINE each response's; in one response they are the same."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 12, V, generator=generator, dtype=torch.float64).mul(2).requires_grad_()
    ids = torch.randint(V, (1, 12), generator=generator)
    mask = (torch.arange(12) < 11).double()[None]
    plus = torch.ones(1, dtype=torch.float64)
    batch = batch_of(logits, ids, mask, plus, old=moved(logits, 0.1), group=torch.zeros(1, dtype=torch.long))
    objective = SPINE(selection="quantile", kl_weight=0.0, **NO_BAND)
    assert objective.loss(batch).metrics["chosen"].sum() == 3
    same_as_trls(trl_trainer, objective, logits, batch, loss_type="dapo", forks=0.2)
