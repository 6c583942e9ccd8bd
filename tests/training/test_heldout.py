"""The held-out figures of a run, against pictures whose verdicts are known and against an evaluation made by hand."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import HELDOUT, Batch, Data, Evaluation, Optimizer, brightness

from imgrl.evaluation.protocol import Protocol, generate
from imgrl.policies import load_policy
from imgrl.training import heldout
from imgrl.training.checkpoint import load_weights
from imgrl.training.image_loop import Trainer
from imgrl.training.reporting import Silent
from imgrl.types import Prompt
from imgrl.world.render import Placed, draw

# prompt: its task, the shapes it asks for, the shapes that its picture shows
SCENES = {
    "a photo of a star and a square": ("two_object", ["star", "square"], ["star", "square"]),
    "a photo of a circle and a ring": ("two_object", ["circle", "ring"], ["circle"]),
    "a photo of a triangle": ("single_object", ["triangle"], ["triangle", "triangle"]),
}
# By GenEval's rules: all that was asked for, whatever else is there; the exact counts; 1 - |found - asked| / asked
# for each shape asked for. The tasks' means come first.
OFFICIAL = ((1 + 0) / 2 + 1) / 2
STRICT = ((1 + 0) / 2 + 0) / 2
PARTIAL = ((1 + (1 + 0) / 2) / 2 + 0) / 2
TRAINING = (1 + (1 + 0) / 2 + 0) / 3  # what the mean of the reward of the same name would say


def picture(shapes):
    placed = [Placed(shape=s, color="blue", x=18 + 28 * i, y=32, radius=11) for i, s in enumerate(shapes)]
    return torch.from_numpy(draw(placed, background="white").copy()).permute(2, 0, 1) / 255


def test_the_official_score_is_not_the_mean_of_the_reward_of_its_name(recipe, tmp_path, monkeypatch):
    pictures = {text: picture(shown) for text, (_, _, shown) in SCENES.items()}

    def rendered(policy, prompts, protocol, *, rows):
        return torch.stack([pictures[prompts[row // protocol.images_per_prompt].text] for row in rows])

    monkeypatch.setattr(heldout, "generate", rendered)
    file = tmp_path / "prompts.jsonl"
    for text, (tag, asked, _) in SCENES.items():
        row = {"prompt": text, "tag": tag, "include": [{"class": name, "count": 1} for name in asked]}
        with file.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
    made = recipe(
        run_rounds=1,
        rewards={"shapes": 1.0},
        data=Data(prompts=str(file)),
        evaluation_prompts=str(file),
        model_height=64,
        model_width=64,
    )
    after = Trainer(made).train().after
    assert after["heldout/shapes"] == after["heldout/shapes@2"] == pytest.approx(OFFICIAL)
    assert after["heldout/shapes_strict"] == pytest.approx(STRICT)
    assert after["heldout/shapes_partial"] == pytest.approx(PARTIAL)
    assert len({OFFICIAL, STRICT, PARTIAL, TRAINING}) == 4


@pytest.mark.parametrize("weights", ["current", "ema"])
def test_the_weights_named_are_the_ones_scored(recipe, sd3, weights):
    """Against images of each of the last checkpoint's copies, made outside the run."""
    protocol = Protocol(images_per_prompt=2, steps=2, seed=5, guidance=2.0, height=16, width=16)
    made = recipe(
        optimizer=Optimizer(lr=0.05),
        batch=Batch(groups=3, group_size=3, micro_groups=3),
        evaluation=Evaluation(
            prompts=HELDOUT,
            every=1,
            images_per_prompt=2,
            steps=(2,),
            seed=5,
            guidance=2.0,
            weights=weights,
            ema=0.5,
        ),
        model_train="full",
    )
    scored = Trainer(made).train().after["heldout/bright"]
    policy = load_policy(sd3, train="full")
    prompts = [Prompt(id=i, text=text) for i, text in enumerate(HELDOUT)]
    found = {}
    for name in ("current", "ema"):
        load_weights(Path(made.run.dir) / "checkpoints" / "step-2", policy, name)
        images = generate(policy, prompts, protocol)
        found[name] = sum(brightness(images, prompts)) / len(images)
    assert abs(found["current"] - found["ema"]) > 1e-4
    assert scored == pytest.approx(found[weights], abs=1e-6)


@pytest.mark.parametrize(("grown", "told"), [(1.0, 0), (1.49, 0), (1.61, 2)])
def test_a_policy_that_drifts_off_is_told_of(recipe, monkeypatch, grown, told):
    """At the evaluation in the run and at the one after it."""
    messages = []

    class Heard(Silent):
        def message(self, text):
            messages.append(text)

    made = recipe(run_rounds=2, evaluation_every=1)
    monkeypatch.setattr(heldout, "velocity_norm_ratios", lambda *given, **settings: torch.full((2,), grown))
    Trainer(made, reporter=Heard()).train()
    found = [text for text in messages if "velocities have grown to 1.61 times the pretrained" in text]
    assert len(found) == told == sum("velocities" in text for text in messages)
