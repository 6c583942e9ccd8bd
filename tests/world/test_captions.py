"""Imperfect captions: how often they are wrong, in what, and what they never say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.world.captions import attributes, imperfect_caption
from imgrl.world.prompts import ALL_TASKS, prompts, sign
from imgrl.world.vocabulary import TASKS

SEEN = {task: prompts("pretraining", (task,)) for task in ALL_TASKS}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_without_mistakes_the_caption_is_the_prompt(task):
    rng = np.random.default_rng(0)
    for prompt in SEEN[task][:20]:
        assert imperfect_caption(prompt, rng, wrong=0.0) == prompt.text


@settings(max_examples=50, deadline=None)
@given(task=st.sampled_from(TASKS), index=st.integers(0, 10**6), seed=st.integers(0, 2**32 - 1))
def test_a_caption_is_a_prompt_of_the_same_task_that_holds_nothing_out(task, index, seed):
    pool = SEEN[task]
    caption = imperfect_caption(pool[index % len(pool)], np.random.default_rng(seed), wrong=0.5)
    assert caption in {prompt.text for prompt in pool}


def test_each_letter_of_a_sign_is_wrong_at_the_rate_asked_for_and_stays_a_letter():
    """Binomial: 4000 letters at 0.2 give 800 mistakes with a deviation of 25."""
    rng, prompt = np.random.default_rng(1), sign("WXYZ")
    said = [imperfect_caption(prompt, rng, wrong=0.2).split('"')[1] for _ in range(1000)]
    mistakes = sum(a != b for word in said for a, b in zip(word, "WXYZ", strict=True))
    assert abs(mistakes - 800) < 100
    assert all(word.isalpha() and word.isupper() for word in said)


def test_digits_stay_digits():
    rng = np.random.default_rng(2)
    assert all(imperfect_caption(sign("407"), rng, wrong=0.9).split('"')[1].isdigit() for _ in range(50))


def test_refused_captions_are_drawn_again():
    rng = np.random.default_rng(3)
    refused = {sign(f"{a}{b}{c}").text for a in "01234" for b in "0123456789" for c in "0123456789"}
    assert all(
        int(imperfect_caption(sign("567"), rng, wrong=0.5, refused=refused).split('"')[1]) >= 500
        for _ in range(50)
    )


def test_attributes_name_what_is_asked_for():
    by_text = {prompt.text: prompt for prompt in SEEN["color_attr"] + SEEN["counting"]}
    prompt = next(p for text, p in by_text.items() if text == "a photo of a red circle and a green star")
    assert attributes(prompt) == ("red", "circle", 1, "green", "star", 1)


@pytest.mark.parametrize("wrong", [-0.1, 1.0])
def test_a_share_outside_0_to_1_is_refused(wrong):
    with pytest.raises(ValueError, match="share of wrong attributes"):
        imperfect_caption(sign("CAT"), np.random.default_rng(0), wrong=wrong)
