import os

import pytest

from imgrl.objectives.text import DPO, SFT
from imgrl.recipe import Tracking
from imgrl.recipe_text import TextBatchSizes, TextRecipe

pytest.importorskip("trl")

from imgrl.training.text.arguments import (  # noqa: E402
    online_arguments,
    preference_arguments,
    supervised_arguments,
    tracked_as,
)


def test_every_tracker_is_told_the_project(tmp_path, monkeypatch):
    """Trackio by TRL's arguments, Weights & Biases and TensorBoard by the environment."""
    tracking = Tracking(project="mine")
    online = online_arguments(TextRecipe(tracking=tracking), tmp_path, weights=[1.0])
    assert online.project == "mine" and online.report_to == []
    for objective, arguments in ((SFT(), supervised_arguments), (DPO(), preference_arguments)):
        recipe = TextRecipe(objective=objective, tracking=tracking, batch=TextBatchSizes(group_size=1))
        assert arguments(recipe, tmp_path).project == "mine"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with pytest.raises(KeyError), tracked_as(TextRecipe(tracking=tracking), tmp_path):
        assert os.environ["WANDB_PROJECT"] == "mine"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "mine")
        raise KeyError
    assert os.environ["WANDB_PROJECT"] == "theirs" and "TENSORBOARD_LOGGING_DIR" not in os.environ
