"""When an error leaves a checkpoint behind, on trainers that are nothing but what they would say of themselves."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imgrl.errors import BudgetError, ModelError
from imgrl.objectives.text import GRPO
from imgrl.training.text.rescue import StepState, save_last_step

BUDGET, BROKEN = BudgetError("the judge is gone"), ModelError("the loss is NaN")


class Trainer:
    """Two updates on each batch of completions; ``saved`` lists the steps it was asked to save."""

    def __init__(self, folder, *, step=4, moved=False, processes=1):
        self.state = SimpleNamespace(global_step=step, num_input_tokens_seen=100)
        self.args = SimpleNamespace(world_size=processes, output_dir=str(folder))
        self.accelerator = SimpleNamespace(num_processes=1, is_main_process=True)
        self.objective, self.model, self.moved, self.saved = GRPO(passes=2), None, moved, []

    def has_moved_on(self):
        return self.moved

    def _save_checkpoint(self, model, trial):
        self.saved.append(self.state.global_step)


def whole(folder, step):
    (folder / f"checkpoint-{step}").mkdir()
    for name in ("trainer_state.json", "anchors.json"):
        (folder / f"checkpoint-{step}" / name).write_text("{}")


@pytest.mark.parametrize("error", [BUDGET, BROKEN])
def test_the_last_whole_step_is_saved_with_the_numbers_it_ended_with(tmp_path, error):
    trainer = Trainer(tmp_path)
    whole(tmp_path, 2)
    last = StepState(trainer.state)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    trainer.state.num_input_tokens_seen += 50  # of a rollout that failed, which has drawn numbers too
    assert save_last_step(trainer, last, error) == tmp_path / "checkpoint-4" and trainer.saved == [4]
    assert trainer.state.num_input_tokens_seen == 100
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (BUDGET, {"step": 0}),
        (BUDGET, {"step": 5}),  # between the two updates on the same completions
        (BROKEN, {"moved": True}),
        (BROKEN, {"processes": 2}),  # the other one may be fine and waiting elsewhere
    ],
)
def test_nothing_is_saved_that_no_run_could_have_saved(tmp_path, error, changes):
    trainer = Trainer(tmp_path, **changes)
    assert save_last_step(trainer, StepState(trainer.state), error) is None and trainer.saved == []


def test_a_checkpoint_that_is_there_is_left_alone(tmp_path):
    trainer = Trainer(tmp_path)
    whole(tmp_path, 4)
    assert save_last_step(trainer, StepState(trainer.state), BUDGET) is None and trainer.saved == []


def test_all_processes_save_what_they_fail_at_alike(tmp_path):
    trainer = Trainer(tmp_path, processes=2)
    assert save_last_step(trainer, StepState(trainer.state), BUDGET) and trainer.saved == [4]
