import os

import pytest

from imgrl.errors import ConfigError
from imgrl.objectives.text import DPO, SFT
from imgrl.recipe import Tracking
from imgrl.recipe_text import VLLM, Generation, TextBatchSizes, TextModel, TextRecipe, TextRun

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


def test_completions_may_come_from_vllm(tmp_path):
    def arguments(**settings):
        recipe = TextRecipe(generation=Generation(vllm=VLLM(**settings)))
        return online_arguments(recipe, tmp_path, weights=[1.0])

    here = arguments(memory=0.5, tensor_parallel=2)
    assert (here.use_vllm, here.vllm_mode) == (True, "colocate")
    assert (here.vllm_gpu_memory_utilization, here.vllm_tensor_parallel_size) == (0.5, 2)
    there = arguments(mode="server", url="http://localhost:8000")
    assert (there.vllm_mode, there.vllm_server_base_url) == ("server", "http://localhost:8000")
    assert not here.vllm_importance_sampling_correction
    assert not online_arguments(TextRecipe(), tmp_path, weights=[1.0]).use_vllm


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "server"}, "url with mode 'server' and only there"),
        ({"url": "http://localhost:8000"}, "url with mode 'server' and only there"),
        ({"mode": "server", "url": "http://localhost:8000", "memory": 0.5}, "with mode 'colocate' only"),
    ],
)
def test_settings_of_vllm_that_nobody_would_read_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        VLLM(**settings)


@pytest.mark.parametrize(("micro", "each", "parts"), [(None, 64, 1), (8, 32, 2)])
def test_more_completions_may_vote_than_are_trained_on(micro, each, parts, tmp_path):
    """A pass generates for the micro-batch that is left of it."""
    batch = TextBatchSizes(groups=4, group_size=4, votes=16, micro=micro)
    made = online_arguments(TextRecipe(batch=batch), tmp_path, weights=[1.0])
    assert (made.num_generations, made.per_device_train_batch_size) == (16, each)
    assert made.gradient_accumulation_steps == made.steps_per_generation == parts
    assert made.generation_batch_size == 64


def test_a_session_from_python_is_checked_before_anything_is_loaded(tmp_path):
    from imgrl.training.text.session import TextSession

    recipe = TextRecipe(
        run=TextRun(dir=str(tmp_path / "run")),
        model=TextModel(path=str(tmp_path / "none")),
        batch=TextBatchSizes(groups=2, group_size=1),
    )
    with pytest.raises(ConfigError, match="batch.group_size must be at least 2 for grpo"):
        TextSession(recipe).train()
