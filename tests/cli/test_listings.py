"""`imgrl rewards` and `imgrl doctor`."""

import json
import platform

from imgrl.cli import doctor
from imgrl.cli.rewards import _here
from imgrl.rewards import REWARDS, RewardEntry


def test_rewards_lists_every_built_in(imgrl):
    text = imgrl("rewards").stdout
    entries = json.loads(imgrl("rewards", "--json").stdout)
    assert set(entries) == set(REWARDS)
    for name, entry in REWARDS.items():
        assert name in text
        assert entries[name]["factory"] == entry.factory
    assert (
        "function(images, prompts, **columns)" in text and "function(completions, prompts, **columns)" in text
    )


def test_rewards_tells_what_is_not_downloaded(imgrl, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    entries = json.loads(imgrl("rewards", "--json").stdout)
    assert entries["imagereward"]["absent"] == list(REWARDS["imagereward"].hub)
    assert entries["jpeg_compressibility"]["absent"] == []
    assert _here(REWARDS["clip"]) == "yes, but its weights are not in the hub cache yet"
    assert _here(REWARDS["shapes"]) == "yes"
    ghost = RewardEntry(factory="x:y", description="-", modules=("no_such_library",), extra="rewards")
    assert _here(ghost) == "no: pip install 'imgrl[rewards]'"


def test_doctor_reports_this_machine(imgrl):
    found = json.loads(imgrl("doctor", "--json").stdout)
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"]
    assert found["devices"][0].startswith("cpu")
    assert found["disk_free_gib"] > 0
    assert found["writable"] is True


def test_doctor_fails_when_something_must_be_fixed(imgrl, monkeypatch):
    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", denied)
    result = imgrl("doctor")
    assert result.exit_code == 1
    assert "cannot be written to (Permission denied); set run.dir" in result.stdout
