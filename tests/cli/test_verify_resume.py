"""The bitwise comparison behind `imgrl verify-resume`."""

import pytest
import torch
from safetensors.torch import save_file

from imgrl.cli.verify_resume import compare_checkpoints
from imgrl.errors import CheckpointError


def write(folder, **tensors):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "weights.safetensors")
    return folder


def test_equal_tensors(tmp_path):
    values = torch.tensor([1.0, float("nan"), -0.0])
    one, two = write(tmp_path / "a", w=values), write(tmp_path / "b", w=values.clone())
    assert compare_checkpoints(one, two) == (1, [])


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([1.0, 0.0]),  # -0.0 equals 0.0 as a number, not as bits
        torch.tensor([1.0000001, -0.0]),
        torch.tensor([1.0, -0.0], dtype=torch.float64),
        torch.tensor([1.0, -0.0, 0.0]),
    ],
)
def test_one_bit_is_a_difference(tmp_path, other):
    one, two = write(tmp_path / "a", w=torch.tensor([1.0, -0.0])), write(tmp_path / "b", w=other)
    assert compare_checkpoints(one, two) == (1, ["weights.safetensors:w"])


def test_a_missing_tensor_is_a_difference(tmp_path):
    one = write(tmp_path / "a", w=torch.zeros(1), v=torch.zeros(1))
    two = write(tmp_path / "b", w=torch.zeros(1))
    assert compare_checkpoints(one, two) == (2, ["weights.safetensors:v"])


def test_nothing_to_compare_is_no_proof(tmp_path):
    with pytest.raises(CheckpointError, match="holds tensors"):
        compare_checkpoints(tmp_path, tmp_path)


def test_stop_must_come_before_the_end(refused):
    assert "--stop must be less than --rounds" in refused("verify-resume", "--rounds", "2", "--stop", "2")
