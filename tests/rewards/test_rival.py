"""Rounds of a discriminator on features that can be read off: mean colours, without a network."""

import json

import pytest
import torch
from PIL import Image

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.discriminator import Head, preference_loss
from imgrl.rewards.features import Features
from imgrl.rewards.learning import Alone
from imgrl.rewards.rival import Rival
from imgrl.rewards.schedule import Schedule
from imgrl.types import Prompt

SIZE, TEXTS = 16, ["a", "b", "c", "d", "e", "f", "g", "h"]
PROMPTS = [Prompt(id=row, text=text) for row, text in enumerate(TEXTS)]


class Colours:
    """Mean colours of an image and of its quarters; counts the images it is shown."""

    name, width, side, device, identity = "colours", 3, SIZE, torch.device("cpu"), "colours"

    def __init__(self):
        self.shown = 0

    def __call__(self, images):
        self.shown += len(images)
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)
        return Features(quarters.mean(1), quarters)


class Plain(Rival):
    """Adversarial without weights of its own; remembers what its loss was given."""

    def __init__(self, references, *, loss="bce", replay=0.0, steps=1, batch=None, prepared=True):
        super().__init__(
            references=str(references),
            extractor=Colours(),
            head=Head(3, hidden=4, generator=torch.Generator().manual_seed(0)),
            loss=loss,
            lr=1e-3,
            batch=batch,
            replay=replay,
            memory=64,
            schedule=Schedule(steps=steps, warmup=0, enough=1.0),
            seed=0,
        )
        self.given = []
        if prepared:
            self.prepare(height=SIZE, width=SIZE, round_trip=lambda images: images)
        self.extractor.shown = 0

    def score(self, features, prompts):
        return self.head(features.overall)

    def _loss(self, real, fake, *, captions, prompts, generator):
        self.given.append((real, fake))
        return preference_loss(self.head(real.overall), self.head(fake.overall)).mean()


def noise(count, seed):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def listed(tmp_path):
    """A picture for each of the eight prompts."""
    rows = []
    for text, image in zip(TEXTS, noise(8, 1), strict=True):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{text}.png")
        rows.append({"prompt": text, "refs": [f"{text}.png"]})
    file = tmp_path / "references.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


# ------------------------------------------------------------------- prompts


def test_prompts_to_train_on_need_references_and_others_do_not(listed):
    rewards = RewardSet.from_specs({"like": Plain(listed)})
    more = [*PROMPTS, *(Prompt(id=8 + row, text=text) for row, text in enumerate("vwxyz"))]
    rewards.check(more, height=SIZE, width=SIZE)  # held-out images are scored, which takes no reference
    rewards.check(PROMPTS, height=SIZE, width=SIZE, training=True)
    with pytest.raises(
        RewardError,
        match=r"'like': 5 of 13 prompts to train on have no reference in .*\.jsonl: 'v', 'w', 'x' and 2 more; add",
    ):
        rewards.check(more, height=SIZE, width=SIZE, training=True)


def test_references_of_no_prompt_serve_every_prompt(listed):
    rewards = RewardSet.from_specs({"like": Plain(listed.parent)})
    rewards.check([Prompt(id=0, text="anything")], height=SIZE, width=SIZE, training=True)


def test_a_check_looks_at_two_references_alone(listed):
    reward = Plain(listed, prepared=False)
    rewards = RewardSet.from_specs({"like": reward})
    rewards.check(PROMPTS, height=SIZE, width=SIZE, training=True)
    assert reward.extractor.shown == 2 + 2  # and at its two flat images
    with pytest.raises(RewardError, match=r"learns from references that it has seen: call prepare\(\)"):
        reward.learn(noise(8, 2), TEXTS, peers=Alone())
    reward.prepare(height=SIZE, width=SIZE, round_trip=lambda images: images)
    assert reward.extractor.shown == 4 + 8
    rewards.check(PROMPTS, height=SIZE, width=SIZE)  # a resumed or second check does not undo it
    reward.learn(noise(8, 2), TEXTS, peers=Alone())


# ----------------------------------------------------------------- processes


def test_heads_that_have_come_apart_are_not_saved(listed):
    class Apart(Alone):
        size = 2

        def gather(self, rows):
            return torch.cat([rows, rows + 1])

    with pytest.raises(RewardError, match="The discriminator differs between the 2 processes"):
        Plain(listed).state_dict(Apart())


# -------------------------------------------------------------------- memory


@pytest.mark.parametrize("cuts", [(8,), (4, 4), (3, 3, 2), (1,) * 8])
def test_each_image_of_a_round_is_looked_at_once_in_whichever_parts_it_is_scored(listed, cuts):
    reward, whole = Plain(listed), Plain(listed)
    rewards = RewardSet.from_specs({"like": reward})
    rewards.score(noise(2, 90), PROMPTS[:2])  # held-out images, before the round
    reward.extractor.shown = 0
    for round in range(2):
        images, first = noise(8, 2 + round), 0
        for count in cuts:
            part = slice(first, first + count)
            rewards.score(images[part], PROMPTS[part], share=True, training=True)
            first += count
        told = rewards.learners.learn(images, PROMPTS)["like"]
        assert reward.extractor.shown == 8 * (round + 1)
        assert told == pytest.approx(whole.learn(images, TEXTS, peers=Alone()), abs=1e-6)
        assert reward._memory.find(images) is None and reward._memory.find(images[-cuts[-1] :]) is None


def test_images_that_are_only_judged_are_not_kept(listed):
    reward = Plain(listed)
    images = noise(4, 2)
    RewardSet.from_specs({"like": reward}).score(images, PROMPTS[:4])
    assert reward._memory.find(images) is None


# ------------------------------------------------------------------ accuracy


@pytest.mark.parametrize(("loss", "constant"), [("pairwise", 0.0), ("pairwise", 9.0), ("pairwise", -9.0)])
def test_accuracy_of_a_loss_of_pairs_is_of_pairs(listed, loss, constant):
    """One reference a prompt, so which pairs are compared is known; a constant on all logits changes nothing."""
    reward, images = Plain(listed, loss=loss), noise(8, 2)
    with torch.no_grad():
        reward.head.layers[2].bias += constant
        ours = reward.head(Colours()((noise(8, 1) * 255).byte() / 255).overall)
        theirs = reward.head(Colours()(images).overall)
    expected = sum(float(o > t) for o, t in zip(ours, theirs, strict=True)) / 8
    assert 0 < expected < 1
    assert reward.learn(images, TEXTS, peers=Alone())["accuracy"] == pytest.approx(expected)


def test_accuracy_of_other_losses_is_at_0(listed):
    for constant in (9.0, -9.0):
        reward = Plain(listed, loss="bce")
        with torch.no_grad():
            reward.head.layers[2].bias += constant
        assert reward.learn(noise(8, 2), TEXTS, peers=Alone())["accuracy"] == 0.5


# --------------------------------------------------------------------- steps


def rows(features):
    return {tuple(row) for row in features.overall.tolist()}


def test_old_images_take_their_share_of_every_step(listed):
    reward = Plain(listed, replay=0.25, steps=3)
    rounds = [noise(8, 2 + number) for number in range(3)]
    own = [rows(Colours()(images)) for images in rounds]
    for number, images in enumerate(rounds):
        reward.given.clear()
        reward.learn(images, TEXTS, peers=Alone())
        assert len(reward.given) == 3  # schedule.steps
        for real, fake in reward.given:
            assert len(fake.overall) == len(real.overall) == 8
            old = [tuple(row) for row in fake.overall.tolist() if tuple(row) not in own[number]]
            assert len(old) == (2 if number else 0)  # int(0.25 x 8), once there are any
            assert set(old) <= set().union(*own[:number])


def test_a_loss_of_pairs_takes_no_old_images(listed):
    reward = Plain(listed, loss="pairwise", replay=0.25)
    for seed in (2, 3):
        reward.given.clear()
        reward.learn(noise(8, seed), TEXTS, peers=Alone())
        assert all(rows(fake) == rows(Colours()(noise(8, seed))) for _, fake in reward.given)


def test_a_step_takes_a_batch_of_each_side(listed):
    reward = Plain(listed, batch=5, steps=2)
    reward.learn(noise(8, 2), TEXTS, peers=Alone())
    assert [(len(real.overall), len(fake.overall)) for real, fake in reward.given] == [(5, 5)] * 2
