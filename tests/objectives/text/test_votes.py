import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.objectives.text.votes import Vote, majority, vote_rewards

ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=2, max_size=12)


def test_the_most_frequent_answer_wins():
    assert majority(["7", "8", "7", None]) == Vote("7", pytest.approx(2 / 3), False)
    assert vote_rewards(["7", "8", "7", None]) == [1, 0, 1, 0]


def test_ties_go_to_the_first_or_to_nobody():
    assert majority(["2", "1", "1", "2"]) == Vote("2", 0.5, True)
    assert majority(["2", "1", "1", "2"], ties="none") == Vote(None, 0.5, True)
    assert vote_rewards(["2", "1"], ties="none") == [None, None]


def test_nothing_parsed_decides_nothing():
    assert majority([None, None]) == Vote(None, 0.0, False)
    assert vote_rewards([None, None, None]) == [None, None, None]


def test_a_rule_for_ties_that_does_not_exist_is_refused():
    with pytest.raises((ValueError, TypeError), match="ties"):
        majority(["1", "2"], ties="random")


def test_one_parsed_answer_is_the_majority_of_itself_and_judges_the_others():
    assert majority([None, "4", None]) == Vote("4", 1.0, False)
    assert vote_rewards([None, "4", None]) == [0, 1, 0]
    assert vote_rewards([None, "4", None], leave_one_out=True) == [0, None, 0]  # nobody left to judge it


def test_leaving_oneself_out():
    assert vote_rewards(["a", "b", "b"], leave_one_out=True, ties="none") == [0, None, None]
    assert vote_rewards(["a", None], leave_one_out=True) == [None, 0]


@settings(deadline=None)
@given(ANSWERS, st.randoms())
def test_without_a_tie_the_order_does_not_matter(answers, random):
    vote = majority(answers)
    if not vote.tied:
        mixed = answers[:]
        random.shuffle(mixed)
        assert majority(mixed) == vote


@settings(deadline=None)
@given(ANSWERS)
def test_a_clear_margin_makes_both_votes_equal(answers):
    counts = sorted((answers.count(a) for a in {"1", "2", "3"}), reverse=True)
    if counts[0] - counts[1] >= 2:
        assert vote_rewards(answers) == vote_rewards(answers, leave_one_out=True)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 responses"):
        vote_rewards(["1"])
