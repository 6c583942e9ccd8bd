import pytest

from imgrl.rewards.base import Reward
from imgrl.rewards.resolve import make
from imgrl.types import Prompt


def rewards(completions, prompts, **args):
    reward = Reward("vote", make("vote", args))
    assert reward.groupwise
    rows = [Prompt(id=i, text=text, columns={}) for i, text in enumerate(prompts)]
    return [None if x != x else x for x in reward(completions, rows, ()).tolist()]


def test_a_call_is_a_group_that_votes_together():
    assert rewards(["answer 4", "so answer 4.", "answer 5"], ["p"] * 3) == [1, 1, 0]


def test_a_tie_and_a_group_without_answers_are_undecided():
    assert rewards(["answer 1", "answer 2"], ["p"] * 2) == [None] * 2
    assert rewards(["none", "dunno"], ["q"] * 2) == [None] * 2
    assert rewards(["answer 1", "answer 2"], ["p"] * 2, ties="first") == [1, 0]


def test_an_own_pattern():
    assert rewards(["#### 7", "#### 7", "answer 8"], ["p"] * 3, pattern=r"#### (\d+)") == [1, 1, 0]


def test_votes_may_be_counted_by_what_the_answers_are_worth():
    pytest.importorskip("math_verify")
    texts = [
        r"answer: \frac12",
        "answer: 2",
        "answer: 0.5",
        "answer: 2",
        "answer: 1/2",
        r"answer: $\frac{1}{2}$",
    ]
    assert rewards(texts, ["p"] * 6, equal="math") == [1, 0, 1, 0, 1, 1]
    assert rewards(texts, ["p"] * 6) == [0, 1, 0, 1, 0, 0]
    assert rewards(texts[:4], ["p"] * 4, equal="math") == [None] * 4  # a tie
    odd = ["answer: {[", "answer: {[", "answer: x+1", "answer: 1+x", "answer: x + 1", "nothing"]
    assert rewards(odd, ["p"] * 6, equal="math") == [0, 0, 1, 1, 1, 0]
    with pytest.raises(Exception, match="choose 'text' or 'math'"):
        rewards(texts, ["p"] * 6, equal="value")


def test_a_completion_alone_cannot_vote():
    from imgrl.rewards.calling import Failure, Patience

    reward = Reward("vote", make("vote"), patience=Patience(retries=0))
    answer = reward(["answer 1"], [Prompt(id=0, text="p", columns={})], ())
    assert isinstance(answer, Failure) and "at least 2 responses" in str(answer)


def test_completions_of_two_prompts_do_not_vote_together():
    with pytest.raises(ValueError, match="got 2 prompts in one call"):
        make("vote")(["answer 1", "answer 1"], ["p", "q"])


def test_conversations_vote_by_their_last_message():
    def chat(role, text):
        return [{"role": "system", "content": "answer 9"}, {"role": role, "content": text}]

    completions = [chat("assistant", text) for text in ("answer 4", "so answer 4.", "answer 5")]
    assert rewards(completions, [chat("user", "2+2") for _ in completions]) == [1, 1, 0]
    with pytest.raises(ValueError, match="got 2 prompts in one call"):
        make("vote")(completions, [chat("user", text) for text in ("2+2", "2+3", "2+2")])


def test_unknown_ties_are_refused():
    with pytest.raises(Exception, match="rule for ties"):
        rewards(["answer 1", "answer 2"], ["p"] * 2, ties="last")
