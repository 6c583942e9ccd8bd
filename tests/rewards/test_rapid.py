"""RapidOCR as the OCR reward's engine: with its real weights where it is installed, with a stand-in elsewhere."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

pytest.importorskip("rapidfuzz")
from imgrl.errors import RewardError  # noqa: E402
from imgrl.rewards.ocr import Ocr  # noqa: E402

WORDS = ["STOP", "APPLE", "2024"]


def sign(word, paper="white", ink="black"):
    picture = Image.new("RGB", (64, 64), paper)
    ImageDraw.Draw(picture).text((3, 20), word, fill=ink, font=ImageFont.load_default(size=18))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RewardError, match=r"needs rapidocr-onnxruntime, .* `pip install --no-deps rapidocr-onnx"
    ):
        Ocr(engine="rapidocr")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="engine must be one of easyocr, rapidocr, got 'tesseract'"):
        Ocr(engine="tesseract")  # pyright: ignore[reportArgumentType]
    for wrong in ({"mode": "recognise"}, {"bfloat16": True}, {"device": "cuda"}):
        with pytest.raises(ValueError, match="RapidOCR detects in float32 on the CPU"):
            Ocr(engine="rapidocr", **wrong)


def test_what_the_engine_is_given_and_answers(monkeypatch):
    """A stand-in for the package that records its calls."""
    seen = {}

    class RapidOCR:
        def __init__(self, **settings):
            seen["settings"] = settings

        def __call__(self, picture):
            seen["corner"] = picture[0, 0].tolist()
            return ([[[0, 0], "ST", 0.9], [[0, 9], "OP", "0.8"]], [0.1]) if picture.any() else (None, None)

    package = types.ModuleType("rapidocr_onnxruntime")
    package.__spec__ = importlib.util.spec_from_loader("rapidocr_onnxruntime", loader=None)
    package.RapidOCR = RapidOCR  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", package)
    reward = Ocr(engine="rapidocr", detector_side=96)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert reward(red, ['says "STOP"']) == [1.0]
    assert seen["corner"] == [0, 0, 255]  # blue first
    assert seen["settings"] == {"det_limit_side_len": 96, "det_limit_type": "min", "use_cls": False}
    assert reward(0 * red, ['says "STOP"']) == [0.0]


def test_real_weights_read_words_exactly():
    pytest.importorskip("rapidocr_onnxruntime")
    reward = Ocr(engine="rapidocr")
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    blue = sign(WORDS[1], (48, 88, 222), "white")
    images = torch.stack([sign(WORDS[0]), blue, sign(WORDS[2]), torch.ones(3, 64, 64), noise])
    prompts = [f'a sign that says "{word}"' for word in [*WORDS, "MOON", "MOON"]]
    scores = reward(images, prompts)
    assert scores == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [reward(images[i : i + 1], prompts[i : i + 1])[0] for i in range(5)] == scores
