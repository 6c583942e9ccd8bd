"""How many tokens a model was made for, as its configuration says it."""

import pytest
from small_lm import tokenizer
from transformers import BloomConfig, GPT2Config, Qwen2Config

from imgrl.errors import ConfigError
from imgrl.training.text.reading import require_length, require_room

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
ROOM = [(GPT2Config(n_positions=64), 64), (Qwen2Config(max_position_embeddings=64), 64)]
ROOM.append((Qwen2Config(max_position_embeddings=64, rope_parameters=YARN), 256))


class Model:
    def __init__(self, config):
        self.config = config


@pytest.mark.parametrize(("config", "room"), ROOM)
def test_a_prompt_and_its_completion_fill_the_room_and_no_more(config, room):
    asked = {"tokenizer": tokenizer(), "model": Model(config), "key": "generation.max_tokens", "source": "x"}
    require_room(["a", "b" * 10], more=room - 10, **asked)
    with pytest.raises(
        ConfigError, match=f"has 10 tokens and generation.max_tokens is {room - 9}, .*than {room}"
    ):
        require_room(["a", "b" * 10], more=room - 9, **asked)


def test_some_models_read_any_number():
    require_room(["a" * 99], tokenizer(), Model(BloomConfig()), more=10**6, key="k", source="x")


def test_a_row_is_as_long_as_its_prompt_and_its_longer_answer():
    rows = [{"prompt": "a" * 10, "chosen": "b" * 54, "rejected": "c"}]
    given = {"tokenizer": tokenizer(), "model": Model(GPT2Config(n_positions=64)), "source": "x"}
    require_length(rows, most=512, **given)
    rows[0]["chosen"] += "b"
    require_length(rows, most=64, **given)  # cut there
    with pytest.raises(ConfigError, match="Row 1 of x has 65 tokens"):
        require_length(rows, most=512, **given)
