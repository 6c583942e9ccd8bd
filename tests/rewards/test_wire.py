"""Requests and answers of a reward server: a round trip loses nothing, and whatever is malformed is refused."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from imgrl.rewards.address import is_loopback, token_from
from imgrl.rewards.wire import PROTOCOL, WireError, pack, parse, read_scores, unpack, write_scores

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), count=st.integers(1, 3), height=st.integers(1, 4), width=st.integers(1, 4))
def test_a_round_trip_keeps_levels_prompts_and_columns(data, count, height, width):
    size = count * 3 * height * width
    raw = data.draw(st.binary(min_size=size, max_size=size))
    levels = np.frombuffer(raw, dtype=np.uint8).reshape(count, 3, height, width)
    prompts = data.draw(st.lists(st.text(max_size=8), min_size=count, max_size=count))
    column = data.draw(st.lists(JSON, min_size=count, max_size=count))
    sent = pack(torch.from_numpy(levels / 255.0), prompts, {"c": column})
    images, texts, columns = unpack(sent, most_images=3)
    assert images.dtype == torch.float32 and 0 <= images.min() and images.max() <= 1
    assert np.array_equal((images.numpy() * 255).round().astype(np.uint8), levels)
    assert (texts, columns) == (prompts, {"c": column})


def blob(request=None, tensors=None, raw=None, **changes):
    """A request of two images, with parts of it replaced."""
    tensors = {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)} if tensors is None else tensors
    request = {"protocol": PROTOCOL, "prompts": ["a", "b"], "columns": {}} if request is None else request
    text = json.dumps({**request, **changes}) if isinstance(request, dict) else request
    return save(tensors, metadata={"request": text} if raw is None else raw)


def image(*shape, dtype=torch.uint8):
    return {"images": torch.zeros(*shape, dtype=dtype)}


def test_the_helper_makes_a_good_request():
    assert unpack(blob(), most_images=2)[1] == ["a", "b"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"", "safetensors"),
        (b"hello", "safetensors"),
        (b"\x80\x04\x95" + b"x" * 64, "safetensors"),  # how a pickle begins
        (struct.pack("<Q", 2**63) + b"{}", "safetensors"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (blob()[:-1], "safetensors"),
        (blob() + b"more", "safetensors"),
        (blob(raw={}), "safetensors"),
        (blob(raw={"requests": "{}"}), "KeyError"),
        (blob("{"), "JSONDecodeError"),
        (blob("[" * 100_000), "nested too deeply"),
        (blob('{"protocol": NaN}'), "NaN is no JSON"),
        (blob("[]"), "a JSON object"),
        (blob(tensors={**image(2, 3, 4, 4), "more": torch.zeros(1)}), "one tensor, `images`"),
        (blob(tensors={"pictures": torch.zeros(1)}), "one tensor, `images`"),
        (blob(protocol=2), "of protocol 2, this server speaks 1"),
        (blob(protocol=None), "of protocol None"),
        (blob(tensors=image(2, 3, 4, 4, dtype=torch.float32)), "must be uint8"),
        (blob(tensors=image(2, 4, 4, 3)), r"must be uint8 \[n, 3, H, W\], got torch.uint8 \[2, 4, 4, 3\]"),
        (blob(tensors=image(3, 4, 4)), "must be uint8"),
        (blob(tensors=image(0, 3, 4, 4)), "must be uint8"),
        (blob(tensors=image(2, 3, 0, 4)), "must be uint8"),
        (blob(tensors=image(3, 3, 4, 4)), "at most 2 images, got 3"),
        (blob(prompts=["a"]), "prompts must be 2 texts"),
        (blob(prompts=["a", 1]), "prompts must be 2 texts"),
        (blob(prompts="ab"), "prompts must be 2 texts"),
        (blob(columns=None), "every column must be a list of 2"),
        (blob(columns={"c": [1]}), "every column must be a list of 2"),
        (blob(columns={"c": "ab"}), "every column must be a list of 2"),
    ],
)
def test_a_malformed_request_is_refused(message, sentence):
    with pytest.raises(WireError, match=sentence):
        unpack(message, most_images=2)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_whatever_it_is(noise):
    with pytest.raises(WireError):
        unpack(noise, most_images=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, torch.zeros(1), b"x"])
def test_a_column_that_json_cannot_say_is_named(value):
    with pytest.raises(WireError, match="the column 'c' cannot be sent as JSON"):
        pack(torch.zeros(1, 3, 2, 2), ["a"], {"c": [value]})


def test_scores_travel_exactly():
    scores = torch.tensor([0.1, -3e38, math.nan, 0.0])
    sent = json.loads(json.dumps({"scores": write_scores(scores)}, allow_nan=False))
    back = read_scores(sent, 4)
    assert back[2] is None
    assert torch.equal(torch.tensor([v for v in back if v is not None]), scores[[0, 1, 3]])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (None, "no list of scores"),
        ([1.0, 2.0], "no list of scores"),
        ({"scores": "ab"}, "no list of scores"),
        ({"scores": [1.0]}, "given 2 images and answered with 1 scores"),
        ({"scores": [1.0, 2.0, 3.0]}, "answered with 3 scores"),
        ({"scores": [1.0, math.nan]}, "finite numbers or null, got nan"),
        ({"scores": [math.inf, 1.0]}, "got inf"),
        ({"scores": [10**400, 1.0]}, "got 1000"),
        ({"scores": [1e39, 1.0]}, "got 1e"),  # more than float32 holds
        ({"scores": ["1.0", 1.0]}, "got 1.0"),
        ({"scores": [True, 1.0]}, "got True"),
        ({"scores": [[1.0], 1.0]}, r"got \[1.0\]"),
    ],
)
def test_a_malformed_answer_is_refused(answer, sentence):
    with pytest.raises(WireError, match=sentence):
        read_scores(answer, 2)


def test_json_is_read_strictly():
    assert parse(b'{"a": [1, null]}') == {"a": [1, None]}
    for text in (b"NaN", b"-Infinity", b"\xff", b"1" * 5000, b"[" * 100_000):
        with pytest.raises(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.2", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_loopback(host, answer):
    assert is_loopback(host) is answer


def test_a_token_comes_from_the_environment(monkeypatch):
    from imgrl.errors import RewardError

    monkeypatch.setenv("TOKEN", "s3cret\n")
    assert token_from("TOKEN") == "s3cret"
    for value, sentence in (("", "not set"), ("two words", "printable ASCII"), ("café", "printable ASCII")):
        monkeypatch.setenv("TOKEN", value)
        with pytest.raises(RewardError, match=sentence):
            token_from("TOKEN")
