"""Checkpoints: whole or not there, verified when read, and enough to continue bit for bit."""

import errno
import json
from pathlib import Path

import pytest
import torch

from imgrl.errors import CheckpointError
from imgrl.training import checkpoint
from imgrl.training.checkpoint import (
    FORMAT,
    latest_checkpoint,
    list_checkpoints,
    optimizer_tensors,
    pack,
    prune,
    read_checkpoint,
    restore_optimizer,
    unpack,
    write_checkpoint,
)
from imgrl.training.image_loop import Trainer
from imgrl.training.run_folder import holds_results
from imgrl.training.state import join_tensors, split_tensors


def write(run, round, value=None):
    """A small checkpoint whose content follows from its round."""
    tensors = {
        "weights": {"current/w": torch.full((3,), float(round if value is None else value))},
        "rewards": {},
    }
    return write_checkpoint(
        run, round, tensors=tensors, state={"step": round, "seconds": 0.5}, config="a: 1\n"
    )


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --------------------------------------------------------------- read, write


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path, 4)
    state, tensors = read_checkpoint(folder)
    assert (state["round"], state["step"], state["seconds"]) == (4, 4, 0.5)
    assert tensors["weights"]["current/w"].tolist() == [4.0] * 3 and tensors["rewards"] == {}
    assert (folder / "config.yaml").read_text() == "a: 1\n"
    assert latest_checkpoint(tmp_path) == folder and latest_checkpoint(tmp_path / "none") is None


def test_names_survive_packing():
    groups = {
        "current": {"a.b.weight": torch.ones(1), "c/d": torch.zeros(1)},
        "old": {"a.b.weight": torch.ones(2)},
    }
    assert unpack(pack(groups)) == groups


def test_nested_state_survives():
    state = {
        "turn": 1,
        "strata": [{"generator": torch.tensor([1, 2]), "pending": [3]}, {"x": {"y": torch.ones(1)}}],
    }
    tensors, plain = split_tensors(state)
    back = join_tensors(tensors, json.loads(json.dumps(plain)))
    assert back["strata"][0]["pending"] == [3] and torch.equal(
        back["strata"][0]["generator"], torch.tensor([1, 2])
    )
    assert torch.equal(back["strata"][1]["x"]["y"], torch.ones(1)) and back["turn"] == 1


def test_an_optimiser_continues_where_it_was():
    def steps(parameter, optimizer, gradients):
        for gradient in gradients:
            parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()

    one, two = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    first, second = torch.optim.AdamW([one], lr=0.1), torch.optim.AdamW([two], lr=0.1)
    steps(one, first, [1.0, -0.5])
    with torch.no_grad():
        two.copy_(one)
    restore_optimizer(second, {key: value.clone() for key, value in optimizer_tensors(first).items()})
    steps(one, first, [0.3])
    steps(two, second, [0.3])
    assert torch.equal(one, two)


# -------------------------------------------------------------- full disk


@pytest.mark.parametrize("files_that_fit", [0, 1])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, files_that_fit):
    previous = write(tmp_path, 1)
    kept, real, written = content(previous), checkpoint.save_file, []

    def full(tensors, file):
        written.append(file)
        if len(written) > files_that_fit:
            file.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        CheckpointError, match=r"step-2 could not be written .*No space left.* earlier checkpoints"
    ):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]  # no debris
    assert content(previous) == kept and read_checkpoint(previous)[0]["round"] == 1
    assert write(tmp_path, 2) == latest_checkpoint(tmp_path)


def test_a_failure_at_the_rename_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(
        checkpoint.Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
    )
    with pytest.raises(CheckpointError, match="I/O error"):
        write(tmp_path, 2)
    assert latest_checkpoint(tmp_path).name == "step-1"


def test_a_failure_at_the_rename_gives_the_one_of_the_same_round_back(tmp_path, monkeypatch):
    before, real = content(write(tmp_path, 1)), checkpoint.Path.rename

    def fails(path, target):
        if path.name == ".step-1.partial":
            raise OSError(errno.EIO, "I/O error")
        return real(path, target)

    monkeypatch.setattr(checkpoint.Path, "rename", fails)
    with pytest.raises(CheckpointError, match="I/O error"):
        write(tmp_path, 1, value=2.0)
    assert content(latest_checkpoint(tmp_path)) == before


def test_a_full_disk_at_the_start_of_a_resumed_run_leaves_its_settings(recipe, monkeypatch):
    made = recipe(run_rounds=2)
    Trainer(made).train()
    settings, real = (Path(made.run.dir) / "config.yaml").read_text(), Path.write_text

    def full(path, text, *args, **kwargs):
        if "config.yaml" in path.name:
            path.open("w").close()  # as a file that is opened for writing is left
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        Trainer(made).train(resume=True)
    monkeypatch.undo()
    assert (Path(made.run.dir) / "config.yaml").read_text() == settings


def test_a_full_disk_stops_a_run_that_then_continues(recipe, monkeypatch):
    made, real = recipe(run_rounds=3), checkpoint.save_file

    def full_after_round_one(tensors, file):
        if "step-2" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full_after_round_one)
    with pytest.raises(CheckpointError, match="--resume"):
        Trainer(made).train()
    monkeypatch.undo()
    assert Trainer(made).train(resume=True).rounds == 3


# ---------------------------------------------------- the same round again


def test_saving_the_same_state_again_touches_nothing(tmp_path):
    before = content(write(tmp_path, 3))
    assert content(write(tmp_path, 3)) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-3"]


@pytest.mark.parametrize("damaged", [False, True])
def test_another_state_or_a_damaged_one_is_replaced(tmp_path, damaged):
    folder = write(tmp_path, 3, value=1 if damaged else 0)
    if damaged:
        (folder / "weights.safetensors").write_bytes(b"")
    write(tmp_path, 3, value=1)
    assert read_checkpoint(folder)[1]["weights"]["current/w"].tolist() == [1.0] * 3
    prune(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-3"]


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("name", ["weights.safetensors", "config.yaml", "rewards.safetensors", "state.json"])
def test_any_flipped_byte_is_found(tmp_path, name):
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    good = (folder / name).read_bytes()
    for place in sorted({0, len(good) // 3, len(good) // 2, len(good) - 1}):
        bad = bytearray(good)
        bad[place] ^= 0x81
        (folder / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"step-2.*(changed after|readable|format).*") as found:
            read_checkpoint(folder)
        assert "\n" not in str(found.value)
    (folder / name).write_bytes(good)
    read_checkpoint(folder)


def test_a_changed_number_in_the_state_is_found(tmp_path):
    folder = write(tmp_path, 12)
    state = folder / "state.json"
    state.write_text(state.read_text().replace('"step": 12', '"step": 13'))
    with pytest.raises(
        CheckpointError, match="was changed after it was written; there is no other checkpoint"
    ):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "config.yaml"])
def test_a_missing_file_is_named_with_a_way_out(tmp_path, name):
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*remove that folder to resume from step-1"):
        read_checkpoint(folder)


@pytest.mark.parametrize("text", ["[]", "", '{"format": '])
def test_a_state_that_is_no_object_is_refused(tmp_path, text):
    folder = write(tmp_path, 1)
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        read_checkpoint(folder)


def test_another_format_is_refused(tmp_path):
    folder = write(tmp_path, 1)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": FORMAT - 1}))
    with pytest.raises(CheckpointError, match=f"format {FORMAT - 1}, this version of imgrl reads {FORMAT}"):
        read_checkpoint(folder)


def test_unfinished_folders_do_not_count_and_are_swept(tmp_path):
    for round in (2, 10, 9):
        write(tmp_path, round)
    (tmp_path / "checkpoints" / ".step-11.partial").mkdir()
    (tmp_path / "checkpoints" / "step-best").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-2", "step-9", "step-10"]
    prune(tmp_path, 2)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-10", "step-9", "step-best"]


def test_a_first_checkpoint_that_was_never_whole_bars_nobody_from_starting_again(tmp_path):
    """Killed in the middle of writing it: there is nothing to resume, so a run must be able to begin."""
    half = tmp_path / "checkpoints" / ".step-1.partial"
    half.mkdir(parents=True)
    (half / "state.json").touch()
    assert latest_checkpoint(tmp_path) is None and not holds_results(tmp_path)
    half.rename(tmp_path / "checkpoints" / "step-1")
    assert holds_results(tmp_path)
