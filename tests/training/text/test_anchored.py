"""What is kept beside a checkpoint, on trainers that are nothing but the folder they write to."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imgrl.anchor import Constant, Frozen
from imgrl.errors import CheckpointError
from imgrl.objectives.text import ASFT
from imgrl.training.text.anchored import AnchorFiles
from imgrl.training.text.replay import History
from imgrl.training.text.steps import note


class Bare:
    def __init__(self, folder, rank, size):
        self.folder, self.model = folder, nn.Linear(2, 2)
        self.args = SimpleNamespace(process_index=rank, world_size=size, should_save=rank == 0, seed=0)
        self.state = SimpleNamespace(global_step=3)
        self.accelerator = SimpleNamespace(wait_for_everyone=lambda: None)

    def add_callback(self, callback):
        pass

    def _get_output_dir(self, trial):
        return str(self.folder)

    def _save_checkpoint(self, model, trial):
        (self.folder / "checkpoint-3").mkdir(exist_ok=True)

    def _load_optimizer_and_scheduler(self, checkpoint):
        pass


class Replaying(AnchorFiles, Bare):
    def __init__(self, *args):
        self.history = History(2)
        super().__init__(*args, objective=ASFT(), scale=Constant(value=1.0), rule=Frozen())

    def stored(self):
        return self.history.state_dict()

    def take_back(self, tensors):
        self.history.load_state_dict(tensors)


def saved(folder, size=2):
    for rank in reversed(range(size)):  # the main process last, as the barrier has it
        trainer = Replaying(folder, rank, size)
        trainer.history.add([{"advantages": torch.full((2,), 1.0 + rank)}])
        trainer._save_checkpoint(None, None)
        assert (folder / "checkpoint-3" / "anchors.json").exists() == (rank == 0)
    return folder / "checkpoint-3"


def resumed(checkpoint, rank, size=2):
    trainer = Replaying(checkpoint.parent, rank, size)
    trainer._load_optimizer_and_scheduler(str(checkpoint))
    return [group["advantages"].tolist() for step in trainer.history.steps for group in step]


def test_each_process_gets_its_own_groups_back(tmp_path):
    checkpoint = saved(tmp_path)
    assert [resumed(checkpoint, rank) for rank in range(2)] == [[[1.0, 1.0]], [[2.0, 2.0]]]
    assert not list(Path(checkpoint).glob(".*"))  # nothing half written


def test_another_number_of_processes_and_a_lost_part_are_refused(tmp_path):
    checkpoint = saved(tmp_path)
    for size in (1, 3):
        with pytest.raises(CheckpointError, match=f"2 process.es. stored, but {size} resume"):
            resumed(checkpoint, 0, size)
    (checkpoint / "process-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks process-1.safetensors"):
        resumed(checkpoint, 1)


def test_groups_that_an_earlier_version_kept_with_the_anchors_still_load(tmp_path):
    checkpoint = saved(tmp_path, size=1)
    anchors, facts = checkpoint / "anchors.safetensors", checkpoint / "anchors.json"
    save_file(load_file(anchors) | load_file(checkpoint / "process-0.safetensors"), anchors)
    (checkpoint / "process-0.safetensors").unlink()
    facts.write_text('{"anchors": ["base"]}')
    assert resumed(checkpoint, 0, size=1) == [[1.0, 1.0]]


def test_a_metric_is_averaged_over_loss_tokens_or_over_all_that_it_speaks_of():
    log, mask = defaultdict(list), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    by_token = torch.tensor([[1.0, 2.0], [6.0, float("nan")]])
    note(log, {"a": by_token, "b": torch.tensor([1.0, 2.0, 3.0, 6.0]), "c": torch.empty(0)}, mask)
    assert log == {"objective/a": [3.0], "objective/b": [3.0]}  # and no mean of nothing
