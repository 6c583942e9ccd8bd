from dataclasses import fields, replace

import pytest
from tabular import MAJORITY, TRUTH, Run, peaked, says

from imgrl.objectives.text import TEXT_OBJECTIVES

# A new online objective joins by being in TEXT_OBJECTIVES. Measured with five seeds, least probability of the answer
# over three prompts, from .19 (true) or .40 (majority): ADPO .975, GRPO .992, ReMix .994, TRRD .973, TTRL .985,
# SPINE .980.
# Under a KL of weight 3, with four seeds, at most .6.
# Meta-distillation learns from a teacher and not from rewards.
ONLINE = sorted(
    name for name, kind in TEXT_OBJECTIVES.items() if kind.kind == "online" and name != "meta_distill"
)
ANCHORED = [name for name in ONLINE if "kl_weight" in {field.name for field in fields(TEXT_OBJECTIVES[name])}]
WITHOUT_LABELS = {"spine", "ttrl"}


def run_of(objective, **more):
    """A run with what the objective asks for, and the answer it should find."""
    labelled = objective.name not in WITHOUT_LABELS
    teacher = peaked(TRUTH, 0.7) if "teacher" in objective.needs else None
    return Run(objective, labelled=labelled, teacher=teacher, **more), TRUTH if labelled else MAJORITY


@pytest.mark.parametrize("name", ONLINE)
def test_learns_the_answer_or_without_labels_the_majority(name):
    run, answer = run_of(TEXT_OBJECTIVES[name]())
    untrained = says(peaked(MAJORITY, 0.4), answer)
    assert untrained.max() < 0.41
    assert says(run(), answer).min() > 0.9
    assert run.curve[0] < 0.5 and sum(run.curve[-5:]) / 5 > 0.9


@pytest.mark.parametrize("name", ANCHORED)
def test_a_strong_anchor_holds_the_policy_back(name):
    run, answer = run_of(replace(TEXT_OBJECTIVES[name](), kl_weight=3.0), rounds=40)
    if name == "kdrl":
        run.teacher = peaked(MAJORITY, 0.4)  # its anchor is the teacher: here the untrained policy
    assert says(run(), answer).max() < 0.65


def test_without_labels_a_truth_that_is_not_the_majority_is_unlearnt():
    run, _ = run_of(TEXT_OBJECTIVES["ttrl"]())
    assert says(run(), TRUTH).max() < 0.05
