import pytest

from imgrl.rewards.base import Reward
from imgrl.rewards.resolve import make
from imgrl.types import Prompt


def rewards(completions, prompts, **args):
    reward = Reward("vote", make("vote", args))
    assert reward.groupwise
    rows = [Prompt(id=i, text=text, columns={}) for i, text in enumerate(prompts)]
    return [None if x != x else x for x in reward(completions, rows, ()).tolist()]


def test_neighbours_with_one_prompt_vote_together():
    texts = ["answer 4", "so answer 4.", "answer 5", "answer 5", "answer 6", "answer 5"]
    assert rewards(texts, ["p"] * 3 + ["q"] * 3) == [1, 1, 0, 1, 0, 1]


def test_a_tie_and_a_group_without_answers_are_undecided():
    assert rewards(["answer 1", "answer 2", "none", "dunno"], ["p"] * 2 + ["q"] * 2) == [None] * 4
    assert rewards(["answer 1", "answer 2"], ["p"] * 2, ties="first") == [1, 0]


def test_an_own_pattern():
    assert rewards(["#### 7", "#### 7", "answer 8"], ["p"] * 3, pattern=r"#### (\d+)") == [1, 1, 0]


def test_a_completion_alone_cannot_vote():
    from imgrl.rewards.calling import Failure, Patience

    reward = Reward("vote", make("vote"), patience=Patience(retries=0))
    answer = reward(["answer 1"], [Prompt(id=0, text="p", columns={})], ())
    assert isinstance(answer, Failure) and "at least 2 responses" in str(answer)


def test_unknown_ties_are_refused():
    with pytest.raises(Exception, match="rule for ties"):
        rewards(["answer 1", "answer 2"], ["p"] * 2, ties="last")
