"""The OCR reward: recorded scores of the authors' code, and real weights on rendered words."""

import sys
import tempfile

import golden_cases
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.ocr import (
    Ocr,
    _grey,
    _one_device,
    _open_reader,
    quoted_text,
    text_score,
)
from imgrl.rewards.pixels import to_uint8
from imgrl.types import Prompt

pytest.importorskip("rapidfuzz")
REFUSED = ("no_quotes", "empty_target")  # the originals raise; here the reward does not apply


@pytest.mark.parametrize("case", golden_cases.cases("ocr_reward"), ids=golden_cases.case_id)
def test_recorded_scores(case):
    if case["recognised_lines"] == "raise":
        pytest.skip(
            "the originals turn an engine's exception into 0; here it is a failure, masked by the caller"
        )
    target = quoted_text(case["prompt"])
    if set(case.get("quirks", [])) & set(REFUSED):
        assert target is None
        return
    lines = case["recognised_lines"]
    assert text_score(target, lines) == pytest.approx(case["substring_or_distance"], rel=1e-12, abs=1e-12)
    expected = case["frame_mean_distance_only"]
    assert text_score(target, lines, containment=False) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_distances_by_hand():
    assert text_score("kitten", [("sitting", 0.9)]) == pytest.approx(1 - 3 / 6)  # k>s, e>i, +g
    assert text_score("abc", [("far too long to be it", 0.9)]) == 0


def test_an_empty_target_is_refused():
    with pytest.raises(ValueError, match="other than a space"):
        text_score("  ", [])


WORDS = ["STOP", "APPLE", "2024", "TAXI"]


def sign(word, paper="white", ink="black"):
    picture = Image.new("RGB", (64, 64), paper)
    font = ImageFont.load_default(size=18)
    ImageDraw.Draw(picture).text((3, 20), word, fill=ink, font=font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def ocr():
    pytest.importorskip("easyocr")
    pytest.importorskip("easyocr_en_models")
    return Ocr(detector_side=96)


def test_words_are_read_exactly(ocr):
    images = torch.stack([sign(WORDS[0]), sign(WORDS[1], (48, 88, 222), "white"), *map(sign, WORDS[2:])])
    read = ["".join(text for text, _ in lines).upper() for lines in ocr.read(images)]
    assert read == WORDS
    prompts = [f'a sign that says "{word}"' for word in [*WORDS[:3], "MOON"]]
    scores = ocr(images, prompts)
    assert scores[:3] == [1.0] * 3 and scores[3] < 0.5


def test_nothing_is_read_where_nothing_is_written(ocr):
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.ones(1, 3, 64, 64), noise, sign("CAT")[None]])
    assert ocr(images, ['says "CAT"'] * 3 + ["a photo of a cat"]) == [0.0, 0.0, 0.0, None]


def test_the_batch_does_not_matter(ocr):
    muddle = (sign("LEMON") + sign("QUEEN").flip(1)) / 2  # so unsure that EasyOCR reads it twice
    images = torch.stack([sign("FISH"), torch.ones(3, 64, 64), sign("LEMON"), muddle, sign("GOAT")])
    together, alone = ocr.read(images), [ocr.read(image[None])[0] for image in images]
    assert [[text for text, _ in lines] for lines in together] == [[t for t, _ in x] for x in alone]
    confidences = [[torch.tensor([c for _, c in lines]) for lines in batch] for batch in (together, alone)]
    for one, other in zip(*confidences, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_reading_together_is_easyocrs_own_reading(ocr):
    images = torch.stack([sign("FISH"), sign("A1"), sign("LEMON"), torch.ones(3, 64, 64)])
    pixels = to_uint8(images)
    level, slanted = ocr._reader.detect(pixels, min_size=1, mag_ratio=1.5, reformat=False)
    for lines, picture, boxes, free in zip(ocr.read(images), pixels, level, slanted, strict=True):
        own = ocr._reader.recognize(_grey(picture), boxes, list(free), batch_size=1, reformat=False)
        assert [text for text, _ in lines] == [text for _, text, _ in own]
        assert [c for _, c in lines] == pytest.approx([c for *_, c in own], abs=1e-4)


def test_recognising_without_a_detector():
    pytest.importorskip("easyocr_en_models")
    reader = Ocr(mode="recognise")
    images = torch.stack([sign("STOP"), torch.ones(3, 64, 64)])
    assert reader(images, ['says "STOP"'] * 2) == [1.0, 0.0]
    noise = torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert max(reader(noise, ['says "I"', 'says "7"', 'says "CAT"'] * 8)) > 0.3  # letters that are not there


def test_a_reader_leaves_no_folder_behind(tmp_path, monkeypatch):
    pytest.importorskip("easyocr_en_models")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pytest.importorskip("easyocr")  # what else its import does to the path is not ours
    paths = list(sys.path)
    _open_reader("cpu", bfloat16=False, detector=False)
    assert not list(tmp_path.glob("imgrl-*")) and sys.path == paths


def test_settings_are_checked():
    with pytest.raises(ValueError, match="mode must be one of detect, recognise"):
        Ocr(mode="guess")
    with pytest.raises(ValueError, match="detector_side >= 32"):
        Ocr(detector_side=8)


def test_networks_stay_on_one_device():
    """EasyOCR compares with the text "cpu", so it wraps both networks for this device as it does on CUDA."""
    pytest.importorskip("easyocr_en_models")
    reader = _open_reader(torch.device("cpu"), bfloat16=False, detector=True)
    networks = [*reader.detector.modules(), *reader.recognizer.modules()]
    assert len(networks) > 20
    assert not any(isinstance(network, torch.nn.DataParallel) for network in networks)


def test_cuda_means_the_current_device_of_this_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert _one_device("cuda") == "cuda:3"
    assert [_one_device(name) for name in ("cuda:1", "cpu")] == ["cuda:1", "cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(RewardError, match="was given device 'cuda', but torch sees none"):
        Ocr(device="cuda")


@pytest.fixture(scope="module", params=["detect", "recognise"])
def likelihood(request):
    pytest.importorskip("easyocr_en_models")
    return Ocr(mode=request.param, score="likelihood")


def test_likelihood_tells_the_written_text_from_another(likelihood):
    images = torch.stack([sign(word) for word in ("STOP", "TAXI", "TAXI")])
    right = likelihood(images, [f'a sign that says "{word}"' for word in ("STOP", "taxi", "T AXI")])
    wrong = likelihood(images, [f'a sign that says "{word}"' for word in ("SHOP", "TAXES", "CLUB")])
    assert min(right) > 0.9
    assert max(wrong) < 0.5
    assert wrong[0] > wrong[2]  # one letter beside four


def test_a_text_that_the_recogniser_cannot_spell_is_refused_before_a_run(likelihood):
    prompts = [Prompt(id=0, text='a sign that says "STOP 24"'), Prompt(id=1, text='a sign that says "ĿÆS"')]
    rewards = RewardSet.from_specs({"ocr": likelihood})
    with pytest.raises(
        RewardError, match="Reward 'ocr': EasyOCR's English recogniser does not know 'æ', 'ŀ' of"
    ):
        rewards.check(prompts)
    rewards.check(prompts[:1])
    Ocr(mode="recognise").check_prompts([prompt.text for prompt in prompts])  # edits give the S its share


def test_likelihood_of_nothing_is_zero(likelihood):
    blank = torch.ones(1, 3, 64, 64)
    assert likelihood(blank.repeat(2, 1, 1, 1), ['a sign that says "STOP"', "no sign"]) == [0.0, None]


def test_likelihood_of_an_image_does_not_depend_on_its_neighbours(likelihood):
    images = torch.stack([sign(word) for word in WORDS])
    prompts = [f'a sign that says "{word[:-1]}E"' for word in WORDS]
    alone = [likelihood(image[None], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert likelihood(images, prompts) == pytest.approx(alone, abs=1e-5)


def test_what_scores_cannot_be_combined_is_refused():
    with pytest.raises(ValueError, match="score must be one of edits, likelihood, got 'soft'"):
        Ocr(score="soft")
    with pytest.raises(ValueError, match="gives no probabilities"):
        Ocr(engine="rapidocr", score="likelihood")
