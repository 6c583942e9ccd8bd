import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.world.arithmetic import draw, parse_answer, read, right_steps, verify
from imgrl.world.mistakes import imperfect, slipped, terse

relaxed = settings(max_examples=40, deadline=None)

seeds = st.integers(0, 2**32 - 1)


@relaxed
@given(seeds)
def test_a_slip_keeps_the_form_and_changes_a_step_or_the_answer(seed):
    rng = np.random.default_rng(seed)
    problem = draw(rng)
    wrong = slipped(problem, rng)
    assert parse_answer(wrong) is not None
    assert wrong.count("; ") == problem.solution.count("; ")
    assert wrong != problem.solution


def test_a_slip_carries_on_consistently():
    carried = read(
        "add 47+85:", lambda step, result: result - 3 if step == 0 else result
    )  # 7+5=9, so no carry
    assert carried.solution == "7+5+0=9; 4+8+0=12; answer 129"


@relaxed
@given(seeds)
def test_a_terse_solution_is_right_and_shows_no_step(seed):
    problem = draw(np.random.default_rng(seed))
    assert verify(problem.prompt, terse(problem)) and right_steps(problem.prompt, terse(problem)) == 0


def test_the_shares_are_as_asked_for_and_kinds_tell_the_truth():
    rng, kinds, right = np.random.default_rng(0), [], []
    for _ in range(2000):
        problem = draw(rng)
        completion, kind = imperfect(problem, rng, slips=0.4, terse_share=0.15)
        kinds.append(kind)
        right.append(verify(problem.prompt, completion))
        assert kind == "slipped" or right[-1]
    for kind, share in (("slipped", 0.4), ("terse", 0.15), ("right", 0.45)):
        assert abs(kinds.count(kind) / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    assert 0.55 < np.mean(right) < 0.66  # a few slips in chains do not reach the answer


@pytest.mark.parametrize(("slips", "share"), [(-0.1, 0.1), (0.7, 0.4), (0.1, -0.1)])
def test_shares_that_are_none_are_refused(slips, share):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="sum to at most 1"):
        imperfect(draw(rng), rng, slips=slips, terse_share=share)
