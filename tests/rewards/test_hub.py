"""The hub's cache, as its documentation lays it out, and files that are given."""

import pytest

from imgrl.errors import RewardError
from imgrl.rewards.hub import check_source, in_cache, weight_file
from imgrl.rewards.registry import REWARDS


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a way to put a file into it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def put(repository, file):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "snapshots/abc").mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs/main").write_text("abc")
        (folder / "snapshots/abc" / file).write_text("weights")

    return put


def test_a_file_in_the_cache(cache):
    assert not in_cache("owner/name/a.bin|b.bin")
    cache("owner/name", "b.bin")
    assert in_cache("owner/name/a.bin|b.bin") and not in_cache("owner/name/a.bin")
    cache("bert", "vocab.txt")
    assert in_cache("bert/vocab.txt")


def test_an_entry_knows_what_is_absent(cache):
    entry = REWARDS["aesthetic"]
    assert entry.absent() == entry.hub and len(entry.hub) == 2
    cache("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth")
    assert entry.absent() == entry.hub[1:]
    cache("openai/clip-vit-large-patch14", "pytorch_model.bin")
    assert entry.absent() == () and REWARDS["clip"].absent() == ()
    assert REWARDS["shapes"].absent() == ()


def test_files_that_are_given(tmp_path):
    (tmp_path / "w.pt").write_text("x")
    assert weight_file(str(tmp_path / "w.pt"), repository="o/n", file="f.pt") == tmp_path / "w.pt"
    with pytest.raises(
        RewardError, match="no weight file .*gone.pt; download f.pt from https://huggingface.co/o/n"
    ):
        weight_file(str(tmp_path / "gone.pt"), repository="o/n", file="f.pt")


def test_a_download_that_fails_is_one_sentence(monkeypatch):
    def fail(*_):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        RewardError, match=r"f.pt of https://huggingface.co/o/n could .* \(OSError: no network\)"
    ):
        weight_file(None, repository="o/n", file="f.pt")
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda repository, file: f"/cache/{repository}/{file}"
    )
    assert str(weight_file(None, repository="o/n", file="f.pt")) == "/cache/o/n/f.pt"


def test_names_and_paths(tmp_path):
    for name in ("owner/name", "bert-base-uncased", str(tmp_path)):
        assert check_source(name) == name
    for path in ("./here", "/a/b", "~/x", "a/b/c"):
        with pytest.raises(RewardError, match="There is no folder"):
            check_source(path)
