"""What a run does before its first round."""

import pytest
from small_runs import HELDOUT, PROMPTS, assert_same_bits, last_tensors, small_recipe

from imgrl.policies import Policy, embeddings
from imgrl.training.image_loop import Trainer
from imgrl.training.reporting import Silent


class Listening(Silent):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture
def encoders(monkeypatch):
    """Whether each velocity of a run was computed beside loaded text encoders."""
    beside, predict = [], Policy.predict

    def spying(policy, *arguments):
        beside.append(policy._encoders is not None)
        return predict(policy, *arguments)

    monkeypatch.setattr(Policy, "predict", spying)
    return beside


def test_training_on_files_of_embeddings_is_training_on_memory(sd3, tmp_path, encoders, monkeypatch):
    Trainer(small_recipe(sd3, tmp_path / "memory")).train()
    assert not (tmp_path / "memory/embeddings").exists()
    monkeypatch.setattr(embeddings, "_IN_MEMORY", 0)
    reporter = Listening()
    Trainer(small_recipe(sd3, tmp_path / "files"), reporter=reporter).train()
    folder, count = tmp_path / "files/embeddings", len(PROMPTS + HELDOUT)
    assert len(list(folder.iterdir())) == count + 1  # the empty prompt too
    assert f"{count} prompts: their text embeddings (0.0 GiB) are files in {folder}" in reporter.messages
    assert encoders and not any(encoders)
    assert_same_bits(last_tensors(tmp_path / "memory"), last_tensors(tmp_path / "files"))
