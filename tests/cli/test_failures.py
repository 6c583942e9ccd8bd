"""What the system refuses is one sentence with the name of the file: real full disks, folders in the way, limits."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from imgrl.cli.failures import is_file_failure, sentence

FULL = Path("/dev/full")


def last_words(result):
    """The sentence of a refused command, after loading bars, which are off only where tqdm loads after imgrl."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def caught(action):
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@contextmanager
def file_limit(size=None):
    """Writing further than ``size`` bytes into a file fails, as on a full disk; what a run sets itself is undone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILLS_UP = """
import resource

def full(images, prompts):
    if len(images) > 2:  # not the probe before the run
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return images.mean((1, 2, 3))
"""


@pytest.fixture
def filling(small, tmp_path):
    """The arguments of a run during which the disk fills up: from its first scored round on, no file can grow."""
    (tmp_path / "mine.py").write_text(FILLS_UP)
    kept = [override for override in small if not override.startswith("rewards=")]
    return ["train", "-q", *kept, "rewards={full: {use: 'mine.py:full'}}", "run.dir=run", "run.rounds=1"]


def test_a_disk_that_fills_up_during_a_run(imgrl, filling, tmp_path):
    with file_limit():
        result = imgrl(*filling)
    assert last_words(result) == (
        "imgrl: run/metrics.jsonl could not be read or written (File too large): "
        "raise the limit on the size of files or choose another folder"
    )
    assert '"round": 0' in (tmp_path / "run" / "metrics.jsonl").read_text()  # what was there before


def test_debug_shows_where_it_happened(imgrl, filling):
    with file_limit():
        result = imgrl("--debug", *filling)
    assert isinstance(result.exception, OSError) and result.exception.errno == errno.EFBIG


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
def test_a_full_disk():
    def write():
        with FULL.open("a") as handle:
            handle.write("row")

    assert sentence(caught(write)) == (
        "/dev/full could not be read or written (No space left on device): "
        "free some space or choose another folder"
    )


def test_a_folder_in_the_place_of_a_file(imgrl, small, tmp_path):
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    said = last_words(imgrl("train", "-q", *small, "run.dir=run", "run.rounds=1"))
    assert "run/metrics.jsonl could not be read or written (Is a directory)" in said
    assert "move the folder away" in said


def test_an_unreadable_prompt_file(refused, tmp_path):
    """Permissions do not stop root; a file that fails on its first read does."""
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("needs Linux's /proc")
    (tmp_path / "prompts.txt").symlink_to(memory)
    said = refused("check", "data.prompts=prompts.txt")
    assert "The prompt file prompts.txt could not be read (Input/output error); allow reading it" in said


def test_an_export_that_does_not_fit_on_the_disk(imgrl, sd3_folder, tmp_path):
    from imgrl.policies import LoraSpec, load_policy

    policy = load_policy(sd3_folder, lora=LoraSpec(rank=8))
    with file_limit(4096):
        error = caught(lambda: policy.export(tmp_path / "lora"))
    assert is_file_failure(error)
    assert "pytorch_lora_weights.safetensors could not be read or written (File too large)" in sentence(error)
    assert os.listdir(tmp_path) == []


def test_other_writers_name_their_file(tmp_path):
    """None of them puts the file's name into its error."""
    from imgrl.evaluation.grid import save_grid
    from imgrl.policies.embeddings import EmbeddingTable
    from imgrl.training.run_folder import write_json

    noise = torch.rand(4, 3, 64, 64)
    table = EmbeddingTable(lambda _: {"a": noise}, dict, tmp_path / "embeddings")
    actions = {
        ".summary.json.partial": lambda: write_json(tmp_path / "summary.json", ["x" * 100] * 100),
        "grid.png": lambda: save_grid(noise, tmp_path / "grid.png", columns=2),
        "embeddings": lambda: table(["a cat"], torch.device("cpu")),
    }
    for name, action in actions.items():
        with file_limit(4096):
            error = caught(action)
        assert is_file_failure(error) and name in sentence(error), (name, sentence(error))
        assert "(File too large): raise the limit" in sentence(error)


def test_errors_without_a_number_keep_their_own_words():
    error = OSError("Can't load the\n  tokenizer.")
    assert sentence(error).startswith("Can't load the tokenizer; check that file")


def test_a_corrupt_tensor_file_is_named(tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "x.safetensors").write_bytes(b"not tensors")
    error = caught(lambda: load_file(tmp_path / "x.safetensors"))
    assert is_file_failure(error)
    assert sentence(error).startswith(f"{tmp_path}/x.safetensors could not be read or written (")


def test_a_reader_that_went_away_is_no_error():
    """As in ``imgrl rewards | head -0``: nothing on stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "imgrl.cli.main", "check", "--show"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")
