"""A policy gradient in half precision: the update meets the very steps that the rollout took."""

import pytest
from small_runs import Batch, Rollout, rows_of

from imgrl.flow import StochasticSampler
from imgrl.objectives.image import GRPO
from imgrl.policies import Policy
from imgrl.training.image_loop import Trainer

SDE, CPS = StochasticSampler(), StochasticSampler(kind="cps", window=1)


@pytest.mark.parametrize(
    ("sampler", "guidance"), [(SDE, 1.0), (SDE, 2.0), (CPS, 2.0)], ids=["sde", "sde-guided", "cps-guided"]
)
def test_replayed_steps_have_the_log_density_of_the_rollout(recipe, monkeypatch, sampler, guidance):
    """In bf16, with batches of one size in rollout and update, to a thousandth of the clip range; a network's
    rounding alone is 2^-8 of its velocity. In the second round the adapters are not 0 any more.
    """
    rough, predict = [], Policy.predict

    def watched(policy, *arguments):
        v = predict(policy, *arguments)
        rough.append(bool((v.bfloat16() == v).all()))
        return v

    monkeypatch.setattr(Policy, "predict", watched)
    objective = GRPO(sampler=sampler)
    made = recipe(
        objective=objective,
        rollout=Rollout(steps=4, guidance=guidance, batch=2),
        batch=Batch(groups=3, group_size=2, micro_groups=1),
        model_dtype="bf16",
    )
    Trainer(made).train()
    assert rough and all(rough)  # every velocity was computed in bf16
    rows = [row for row in rows_of(made.run.dir) if "train/log_ratio" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["train/log_ratio"] < objective.clip / 1000 and row["train/clipped"] == 0
        assert row["train/grad_norm"] > 0
