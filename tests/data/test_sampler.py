"""The group sampler: coverage, distinct prompts, balance, exact resumption."""

import io
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imgrl.data import GroupSampler

sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(sizes, st.integers(0, 99))
def test_every_prompt_once_before_any_again(size, seed):
    num_prompts, groups = size
    sampler, drawn = GroupSampler(num_prompts, groups, seed), Counter()
    for _ in range(2 * num_prompts // groups + 3):
        chosen = sampler.next_round()
        assert len(set(chosen)) == groups
        drawn.update(chosen)
        counts = [drawn[i] for i in range(num_prompts)]
        assert max(counts) - min(counts) <= 1


@given(sizes, st.integers(0, 9), st.integers(0, 9))
def test_resumption_is_exact(size, before, seed):
    sampler = GroupSampler(*size, seed)
    for _ in range(before):
        sampler.next_round()
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    again = GroupSampler(*size, seed + 1)  # the state decides, not the seed
    again.load_state_dict(torch.load(file, weights_only=True))
    assert [again.next_round() for _ in range(5)] == [sampler.next_round() for _ in range(5)]


@given(st.integers(3, 9), st.integers(3, 9), st.integers(3, 9), st.integers(1, 9))
def test_balanced_rounds(a, b, c, groups):
    keys = ["a"] * a + ["b"] * b + ["c"] * c
    sampler, drawn = GroupSampler(len(keys), groups, 0, balance=keys), Counter()
    for _ in range(12):
        chosen = sampler.next_round()
        per_key = Counter(keys[i] for i in chosen)
        counts = [per_key[key] for key in "abc"]
        assert len(set(chosen)) == groups and max(counts) - min(counts) <= 1
        drawn.update(per_key)
    assert drawn["a"] == drawn["b"] == drawn["c"]  # 12 rounds hand the surplus round evenly


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 6), st.integers(0, 4))
def test_every_equal_part_of_a_balanced_round_is_balanced(strata, parts, size, rounds):
    """An optimiser step takes such a part, whatever the number of updates per round."""
    groups = parts * size
    keys = [key for key in range(strata) for _ in range(groups)]
    sampler = GroupSampler(len(keys), groups, 0, balance=keys)
    for _ in range(rounds + 1):
        chosen = sampler.next_round()
        for start in range(0, groups, size):
            counts = Counter(keys[i] for i in chosen[start : start + size])
            assert max(counts.values()) - min(counts[key] for key in range(strata)) <= 1


def test_two_updates_a_round_see_all_six_tasks():
    keys = [task for task in "abcdef" for _ in range(5)]
    chosen = GroupSampler(30, 12, 0, balance=keys).next_round()
    assert {keys[i] for i in chosen[:6]} == {keys[i] for i in chosen[6:]} == set("abcdef")


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
def test_shares_are_kept_and_spread(b, c, groups):
    keys = [key for key in "abc" for _ in range(40)]
    sampler, drawn = GroupSampler(120, groups, 0, balance=keys, shares={"b": b, "c": c}), Counter()
    cycle = 1 + b + c
    order = []
    for _ in range(cycle):  # so many rounds are `groups` whole cycles
        chosen = sampler.next_round()
        assert len(set(chosen)) == groups
        order += [keys[i] for i in chosen]
    drawn.update(order)
    assert drawn == {"a": groups, "b": b * groups, "c": c * groups}
    for key, share in (
        ("b", b),
        ("c", c),
    ):  # no two turns of a key are farther apart than twice the even distance
        places = [place for place, found in enumerate(order) if found == key]
        gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
        assert not gaps or max(gaps) <= 2 * cycle / share


@given(st.integers(1, 4), st.integers(0, 5))
def test_balanced_resumption_is_exact(groups, before):
    keys, shares = ["a"] * 3 + ["b"] * 2 + ["c"] * 5, {"c": 2}
    sampler = GroupSampler(10, groups, 0, balance=keys, shares=shares)
    for _ in range(before):
        sampler.next_round()
    again = GroupSampler(10, groups, 1, balance=keys, shares=shares)
    again.load_state_dict(sampler.state_dict())
    assert [again.next_round() for _ in range(5)] == [sampler.next_round() for _ in range(5)]


def test_seeds_differ_and_repeat():
    rounds = [[GroupSampler(50, 10, seed).next_round() for _ in range(1)] for seed in (0, 0, 1)]
    assert rounds[0] == rounds[1] != rounds[2]


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    GroupSampler(10, 5, 0).next_round()
    assert torch.equal(torch.rand(3), expected)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="A round of 5 different prompts needs at least that many, got 4"):
        GroupSampler(4, 5, 0)
    with pytest.raises(ValueError, match="balance needs a key for each of 4 prompts, got 3"):
        GroupSampler(4, 2, 0, balance=["a", "b", "c"])
    with pytest.raises(ValueError, match="need up to 2 of 'b', which has 1"):
        GroupSampler(4, 4, 0, balance=["a", "a", "a", "b"])
    for shares in ({"c": 2}, {"a": 0}):
        with pytest.raises(ValueError, match="shares of at least 1 for some of 'a', 'b', got"):
            GroupSampler(4, 2, 0, balance=["a", "a", "b", "b"], shares=shares)
    with pytest.raises(ValueError, match="need up to 3 of 'b', which has 2"):
        GroupSampler(5, 4, 0, balance=["a", "a", "a", "b", "b"], shares={"b": 3})
    with pytest.raises(ValueError, match="but this run has .4, 3, 1."):
        GroupSampler(4, 3, 0).load_state_dict(GroupSampler(4, 2, 0).state_dict())
