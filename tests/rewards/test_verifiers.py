import builtins
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.errors import RewardError
from imgrl.rewards.base import Reward
from imgrl.rewards.calling import Failure, Patience
from imgrl.rewards.resolve import make
from imgrl.rewards.verifiers import Exact, Regex, completion_text
from imgrl.types import Prompt
from imgrl.world.arithmetic import problems

relaxed = settings(max_examples=40, deadline=None)

SOURCE = """
def length(completions, prompts, *, most=10, **columns):
    return [min(len(text), most) / most for text in completions]

def broken(completions, prompts, *, answer):
    raise RuntimeError("the checker is down")

async def slow(completions, prompts):
    return [1.0] * len(completions)
"""


def called(reward, completions, rows, name="mine"):
    """As a trainer calls it: through Reward, which checks the answer and masks what raises."""
    prompts = [Prompt(id=i, text=text, columns=columns) for i, (text, columns) in enumerate(rows)]
    wrapped = Reward(name, reward, patience=Patience(timeout=60, retries=0))
    columns = wrapped.passed_columns({key for _, columns in rows for key in columns})
    return wrapped(completions, prompts, columns)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("answer 12", 1),
        ("so the answer is 12.", 1),
        ("Answer: 12", 1),
        ("7+5=12; answer  12 ", 1),
        ("answer 11; answer 12", 1),
        ("answer 12; answer 11", 0),
        ("answer 12\nanswer 13", 0),
        ("answer 120", 0),
        ("answer", 0),
        ("answer\n12", 0),
        ("answers 12", 0),
        ("12", 0),
        ("", 0),
    ],
)
def test_exact_compares_what_follows_the_last_answer(text, score):
    assert make("exact")([text], ["?"], answer=[12]) == [score]


def test_exact_ignores_white_space_only():
    assert make("exact")(["answer 3  4", "answer 34"], ["?", "?"], answer=["3 4", "3 4"]) == [1, 0]


@pytest.mark.parametrize("marker", ["final", "####"])
def test_exact_takes_another_marker(marker):
    reward = make("exact", {"marker": marker})
    assert reward([f"{marker} 7", "answer 7"], ["?", "?"], answer=[7, 7]) == [1, 0]


def test_regex_takes_its_one_group_at_the_last_match():
    reward = make("regex", {"pattern": r"\\boxed\{([^}]*)\}"})
    texts = [r"\boxed{3} then \boxed{4}", r"\boxed{4} then \boxed{3}", "4"]
    assert reward(texts, ["?"] * 3, answer=["4"] * 3) == [1, 0, 0]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [("(", "which is none"), ("x", "exactly one group"), ("(x)(y)", "exactly one group")],
)
def test_patterns_without_exactly_one_group_are_refused(pattern, sentence):
    with pytest.raises(RewardError, match=sentence):
        make("regex", {"pattern": pattern})


def test_an_optional_group_that_did_not_take_part_is_no_answer():
    assert Regex(pattern=r"x(\d)?").find("x1 x") == "1"


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        (r"the result is $\frac{1}{2}$", "0.5", 1),
        (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", 1),
        (r"$3$", "4", 0),
        ("I do not know", "4", 0),
        ("", "4", 0),
        ("$4$", "", None),  # no reference that could be read
    ],
)
def test_math_compares_expressions_also_outside_the_main_thread(text, reference, score):
    reward = make("math")
    assert reward([text], ["?"], answer=[reference]) == [score]
    scores = called(reward, [text], [("?", {"answer": reference})])  # Reward calls in a thread of its own
    assert math.isnan(scores[0]) if score is None else scores[0] == score


def test_math_masks_a_comparison_that_fails_and_scores_the_others(monkeypatch):
    import math_verify

    true = math_verify.verify

    def verify(gold, given, **settings):
        if "13" in str(given):
            raise RecursionError("too deep")
        return true(gold, given, **settings)

    monkeypatch.setattr(math_verify, "verify", verify)
    assert make("math")(["$13$", "$4$"], ["?", "?"], answer=["4", "4"]) == [None, 1]


def test_math_without_its_library_names_the_extra(monkeypatch):
    importing = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "math_verify":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RewardError, match=r"needs math-verify.*pip install 'imgrl\[lm\]'"):
        make("imgrl.rewards.verifiers:Math")


def test_arithmetic_judges_by_the_prompt_alone_and_leaves_other_prompts_out():
    rows = problems(9, split="heldout")
    reward = make("arithmetic")
    assert reward([row.solution for row in rows], [row.prompt for row in rows]) == [1.0] * 9
    assert reward(["answer 0", "", "no idea"], [rows[0].prompt] * 3) == [0, 0, 0]
    assert reward(["answer 4"], ["What is 2 + 2?"]) == [None]


def test_arithmetic_can_count_the_steps_in():
    text = "7+5+0=12; 4+8+1=14; answer 132"  # one of two steps, right answer
    assert make("arithmetic", {"steps": 0.4})([text], ["add 47+85:"]) == [pytest.approx(0.6 + 0.4 * 0.5)]
    with pytest.raises(RewardError, match=r"share of the steps in \[0, 1\]"):
        make("arithmetic", {"steps": 2})


@pytest.mark.parametrize("use", ["exact", "math"])
def test_a_row_without_a_reference_is_left_out(use):
    scores = called(make(use), ["answer $4$", "$4$"], [("?", {}), ("?", {"answer": "5"})])
    assert math.isnan(scores[0]) and scores[1] == 0


def test_data_without_the_column_is_refused_before_any_call():
    with pytest.raises(RewardError, match="requires the column 'answer'"):
        called(make("exact"), ["answer 4"], [("?", {"task": "add"})])


def test_a_users_function_resolves_by_the_same_address_and_a_raising_one_is_masked(tmp_path):
    (tmp_path / "own.py").write_text(SOURCE)
    rows = [("?", {"answer": "1"})]
    assert called(make(f"{tmp_path}/own.py:length", {"most": 4}), ["ab"], rows).tolist() == [0.5]
    assert called(make(f"{tmp_path}/own.py:slow"), ["ab"], rows).tolist() == [1.0]
    failed = called(make(f"{tmp_path}/own.py:broken"), ["ab"], rows)
    assert isinstance(failed, Failure) and "the checker is down" in str(failed)  # never a zero


def test_images_are_a_failure_and_never_a_zero():
    failed = called(make("exact"), torch.rand(1, 3, 4, 4), [("?", {"answer": "1"})])
    assert isinstance(failed, Failure) and "score texts, not images" in str(failed)


def test_conversations_count_by_their_last_message():
    talk = [{"role": "user", "content": "answer 3"}, {"role": "assistant", "content": "answer 4"}]
    assert make("exact")([talk], ["?"], answer=[4]) == [1]
    assert make("arithmetic")(
        [[{"content": "answer 33"}]], [[{"role": "user", "content": "add 12+21:"}]]
    ) == [1]


@pytest.mark.parametrize("wrong", [None, 3, [], [{}], [{"content": None}], ["answer 4"]])
def test_what_is_no_text_is_refused(wrong):
    with pytest.raises(TypeError, match="texts or conversations"):
        completion_text(wrong)


def test_a_column_of_another_length_is_refused():
    with pytest.raises(ValueError, match="one value of 'answer' per completion, got 1 for 2"):
        make("exact")(["answer 4", "answer 5"], ["?", "?"], answer=[4])


def test_an_empty_marker_is_refused():
    with pytest.raises(RewardError, match="marker word"):
        make("exact", {"marker": " "})


@relaxed
@given(st.integers(), st.text(alphabet="ab;= \n", max_size=20))
def test_exact_finds_any_integer_behind_any_text(number, before):
    assert Exact().find(f"{before}\nanswer {number}") == str(number)
