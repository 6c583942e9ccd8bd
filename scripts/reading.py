"""Which words a discriminator that reads has learned, before any policy: colours, shapes, numbers, places.

    python scripts/reading.py
    python scripts/reading.py --steps 0 600 1000 --set rewards.like.args.lr=5e-4

The discriminator of `tiny-sd3/adv-crd`, with what `--set` changes of it, studies the captions of its references for so
many steps. Then it sees new pictures, each beside its caption and beside the same caption with one word exchanged for
every other one of its kind: the table has the share of those that score below the right caption (0.5 is chance).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from imgrl.config import resolve
from imgrl.rewards.features import rows_of
from imgrl.rewards.learning import Alone
from imgrl.rewards.resolve import make
from imgrl.world.styles import style_set
from imgrl.world.vocabulary import COLORS, COUNT_WORDS, RELATIONS, SHAPES, plural

KINDS = {
    "colours": tuple(COLORS),
    "shapes": SHAPES,
    "shapes (plural)": tuple(plural(shape) for shape in SHAPES),
    "numbers": tuple(COUNT_WORDS.values()),
    "places": RELATIONS,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 250, 500, 1000])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for imgrl train")
    args = parser.parse_args()
    spec: Any = resolve("tiny-sd3/adv-crd", args.set).rewards["like"]
    made = style_set("plain", args.pictures, seed=1)
    images = torch.stack([torch.from_numpy(pixels.copy()).permute(2, 0, 1) for _, pixels in made]) / 255
    print(f"| steps | seconds | {' | '.join(KINDS)} |\n|{'---|' * (2 + len(KINDS))}")
    for steps in args.steps:
        # Two images and one step of a round, before which it studies.
        reward = make(spec.use, {**spec.args, "study": steps, "schedule": {"steps": 1}})
        reward.prepare(height=images.shape[2], width=images.shape[3], round_trip=lambda images: images)
        start = time.perf_counter()
        reward.learn(images[:2], [prompt.text for prompt, _ in made[:2]], peers=Alone())
        taken = time.perf_counter() - start
        known = read(reward, images, [prompt.text for prompt, _ in made])
        print(f"| {steps} | {taken:.0f} | {' | '.join(f'{known[kind]:.2f}' for kind in KINDS)} |", flush=True)


@torch.no_grad()
def read(reward: Any, images: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """Share of exchanged words of each kind that lower the score."""
    seen = reward.features(images)
    right = reward.score(seen, captions)
    tried = [(row, kind, text) for row, caption in enumerate(captions) for kind, text in exchanged(caption)]
    lower: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(tried), 256):
        rows, kinds, texts = zip(*tried[start : start + 256], strict=True)
        places = torch.tensor(rows)
        below = right[places] > reward.score(rows_of(seen, places), texts)
        for kind, found in zip(kinds, below.tolist(), strict=True):
            lower[kind].append(float(found))
    return {kind: sum(found) / len(found) for kind, found in lower.items()}


def exchanged(caption: str) -> Iterator[tuple[str, str]]:
    """Every caption that differs in one word, and the word's kind."""
    for kind, words in KINDS.items():
        for word in words:
            for other in words:
                if other != word and f" {word} " in f" {caption} ":
                    yield kind, f" {caption} ".replace(f" {word} ", f" {other} ", 1).strip()


if __name__ == "__main__":
    main()
