"""PickScore as a discriminator: it begins as PickScore, and only its last image layers follow the policy."""

import json

import pytest
import torch
from PIL import Image

from imgrl.errors import RewardError
from imgrl.rewards.clip import PickScore, clip_tower
from imgrl.rewards.learning import Alone
from imgrl.rewards.pixels import to_uint8
from imgrl.rewards.preference import AdversarialPickScore
from imgrl.rewards.resolve import make

PROMPTS = ["a cat", "a red dog"] * 4


@pytest.fixture(autouse=True)
def fresh():
    clip_tower.cache_clear()


@pytest.fixture
def listed(tmp_path, noise):
    """Two bright pictures for each of two prompts."""
    rows = []
    for number, levels in enumerate(to_uint8(0.5 + noise(4, seed=7) / 2)):
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
        rows.append({"prompt": PROMPTS[number % 2], "refs": [f"{number}.png"]})
    file = tmp_path / "references.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def made(listed, clip_folder, **settings):
    reward = AdversarialPickScore(
        references=listed, model=str(clip_folder), processor=str(clip_folder), device="cpu", **settings
    )
    reward.prepare(height=32, width=32, round_trip=lambda images: images)
    return reward


def dark(noise, seed=0):
    return noise(8, seed=seed) / 2


def test_it_begins_as_pickscore(listed, clip_folder, noise):
    expected = PickScore(model=str(clip_folder), processor=str(clip_folder), device="cpu")(noise(8), PROMPTS)
    torch.testing.assert_close(made(listed, clip_folder)(noise(8), PROMPTS), expected, atol=1e-4, rtol=1e-4)


def test_references_win_after_learning_and_the_fixed_reward_stays(listed, clip_folder, noise):
    fixed = PickScore(model=str(clip_folder), processor=str(clip_folder), device="cpu")
    before = fixed(dark(noise, 5), PROMPTS)
    reward = made(listed, clip_folder, lr=1e-3, batch=4, schedule={"gate": False, "steps": 4})
    told = [reward.learn(dark(noise, seed), PROMPTS, peers=Alone()) for seed in range(6)]
    assert told[-1]["accuracy"] == 1.0 and told[-1]["margin"] > told[0]["margin"] + 0.01
    assert told[-1]["loss"] < told[0]["loss"]
    fixed.tower._images = type(fixed.tower._images)(1024)  # it would remember
    assert torch.equal(fixed(dark(noise, 5), PROMPTS), before)
    assert all(name.startswith("layers.0.") for name, _ in reward.head.named_parameters())
    assert all(parameter.dtype == torch.float32 for parameter in reward.head.parameters())


def test_it_learns_only_where_images_outscore_the_references(listed, clip_folder, noise):
    # D21, eq. 7: the images are either side of the references by the reward itself
    reward = made(listed, clip_folder)
    seen = set()
    for seed in range(12):
        images = dark(noise, seed) if seed % 2 else 0.5 + noise(8, seed=seed) / 2
        before = [parameter.detach().clone() for parameter in reward.head.parameters()]
        told = reward.learn(images, PROMPTS, peers=Alone())
        moved = any(not torch.equal(x, y) for x, y in zip(before, reward.head.parameters(), strict=True))
        assert moved == bool(told["learned"]) == (told["margin"] < 0)
        seen.add(moved)
    assert seen == {True, False}


def test_the_loss_is_the_cross_entropy_of_each_pair(listed, clip_folder, noise):
    # B.3: softmax over the two undivided scores of one prompt, the reference first
    reward = made(listed, clip_folder)
    real, fake = (reward.features(images) for images in (noise(8, seed=1), noise(8, seed=2)))
    scores = torch.stack([26 * reward.score(side, PROMPTS) for side in (real, fake)], dim=1)
    expected = torch.nn.functional.cross_entropy(scores, torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(
        reward._loss(real, fake, captions=PROMPTS, prompts=PROMPTS, generator=torch.Generator()), expected
    )


def test_resuming_goes_on_bit_for_bit(listed, clip_folder, noise):
    settings = {"lr": 1e-3, "batch": 4, "schedule": {"gate": False}}
    whole, first, second = (made(listed, clip_folder, **settings) for _ in range(3))
    for seed in range(4):
        whole.learn(dark(noise, seed), PROMPTS, peers=Alone())
    for seed in range(2):
        first.learn(dark(noise, seed), PROMPTS, peers=Alone())
    second.load_state_dict(first.state_dict(Alone()), Alone())
    for seed in range(2, 4):
        second.learn(dark(noise, seed), PROMPTS, peers=Alone())
    for one, other in zip(whole.head.parameters(), second.head.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole(noise(8), PROMPTS), second(noise(8), PROMPTS))


def test_a_prompt_without_a_reference_is_refused_before_it_learns(listed, clip_folder):
    reward = made(listed, clip_folder)
    reward.check_learning(PROMPTS)
    with pytest.raises(
        RewardError, match="1 of 3 prompts to train on have no reference in .*: 'a blue bird'; add"
    ):
        reward.check_learning([*PROMPTS, "a blue bird"])


def test_what_cannot_be_is_refused(listed, clip_folder, tmp_path):
    with pytest.raises(RewardError, match="gives none; name one for each picture"):
        made(str(tmp_path), clip_folder)
    for settings, told in (({"layers": 2}, "1 to 1 can learn"), ({"divisor": 0}, "divisor > 0")):
        with pytest.raises(ValueError, match=told):
            made(listed, clip_folder, **settings)
    named = make(
        "adversarial_pickscore",
        {"references": listed, "model": str(clip_folder)} | {"processor": str(clip_folder)},
    )
    assert isinstance(named, AdversarialPickScore)
