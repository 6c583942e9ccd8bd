"""A mistyped IMGRL_GOLDEN is refused: otherwise every recorded family would have no case, and all tests pass."""

import runpy

import golden_cases
import pytest


def folder_of_a_fresh_import():
    return runpy.run_path(golden_cases.__file__)["FOLDER"]


def test_a_missing_or_empty_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "package.json").write_text("{}")
    for name in ("missing", "empty", "other"):
        monkeypatch.setenv("IMGRL_GOLDEN", str(tmp_path / name))
        with pytest.raises(
            FileNotFoundError, match=f"IMGRL_GOLDEN must name a folder .*{name} has none; correct"
        ):
            folder_of_a_fresh_import()


def test_a_set_of_one_family_is_read(tmp_path, monkeypatch):
    (tmp_path / "crd_loss.json").write_text('{"cases": [{"id": "mine"}], "tolerance": {}}')
    monkeypatch.setenv("IMGRL_GOLDEN", str(tmp_path))
    fresh = runpy.run_path(golden_cases.__file__)
    assert fresh["cases"]("crd_loss") == [{"id": "mine"}] and fresh["cases"]("nft_loss") == []


def test_unset_means_the_recorded_set_of_this_repository(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("IMGRL_GOLDEN", raising=False)
        if value is not None:
            monkeypatch.setenv("IMGRL_GOLDEN", value)
        assert folder_of_a_fresh_import() == golden_cases.DEFAULT
