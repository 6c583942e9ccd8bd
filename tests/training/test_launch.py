"""Launches that cut the weights in a way that copies cannot follow are refused before a model is loaded."""

import json

import pytest

from imgrl.config.text import resolve_text
from imgrl.errors import ConfigError, ModelError
from imgrl.training.image_loop import Trainer
from imgrl.training.launch import refuse_sharded_weights
from imgrl.training.text.session import TextSession


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1"),  # what accelerate takes where nobody says which
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP1"),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
                "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
                "PARALLELISM_CONFIG_CP_SIZE": "2",
            },
            "context parallelism",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "MEGATRON_LM"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "DeepSpeed stage 3"),
    ],
)
def test_sharded_weights_are_refused(environment, told):
    with pytest.raises(
        ConfigError, match=rf"shards the weights \({told}\), .*--fsdp_version 2.*stage 1 or 2"
    ):
        refuse_sharded_weights(environment, command="imgrl lm train")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ACCELERATE_USE_FSDP": "false"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
            "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
        },
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "/nowhere.json"},
    ],
)
def test_others_are_not(environment):
    refuse_sharded_weights(environment, command="imgrl lm train")


@pytest.mark.parametrize("kind", ["FSDP", "MEGATRON_LM", "DEEPSPEED"])
def test_image_runs_have_a_data_parallelism_of_their_own(recipe, kind, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(
        ConfigError, match="but imgrl train switches whole copies .* plain data parallelism, and"
    ):
        Trainer(recipe()).train()


@pytest.mark.parametrize("stage", [2, 3])
def test_a_configuration_file_is_read(tmp_path, stage):
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    if stage == 2:
        refuse_sharded_weights(environment, command="imgrl lm train")
        return
    with pytest.raises(ConfigError, match="DeepSpeed stage 3"):
        refuse_sharded_weights(environment, command="imgrl lm train")


@pytest.mark.parametrize("kind", ["DeepSpeed", "FSDP"])
def test_what_a_launcher_would_undo_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind.upper()}", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1")
    monkeypatch.setenv("FSDP_VERSION", "2")

    def recipe(name, *more):
        given = [f"run.dir={tmp_path / name}", f"model.path={tmp_path}/nowhere", *more]
        return resolve_text("tiny-lm/grpo", given)

    with pytest.raises(
        ConfigError, match=rf"{kind}, .* model\.mask does not go along with.*plain data parallelism"
    ):
        TextSession(recipe("masked", "model.mask=low")).train()
    pissa = TextSession(recipe("pissa", "model.train=lora", "model.lora.init=pissa"))
    with pytest.raises(ConfigError if kind == "FSDP" else ModelError, match="init=pissa|/nowhere"):
        pissa.train()
    with pytest.raises(ModelError, match="There is no folder .*/nowhere"):  # it goes on to load the model
        TextSession(recipe("plain")).train()


def test_a_run_asks_before_it_loads_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    recipe = resolve_text("tiny-lm/grpo", [f"run.dir={tmp_path / 'run'}", "model.path=nobody/nowhere"])
    with pytest.raises(ConfigError, match="shards the weights"):
        TextSession(recipe).train()
