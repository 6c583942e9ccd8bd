import numpy as np
import pytest
import torch
from golden_cases import assert_close, case_id, cases, decline, family
from hypothesis import given
from hypothesis import strategies as st

from imgrl.training.groups import group_advantages

ALL = cases("advantages")
TRACKER = [case for case in ALL if case["method"] == "flow_grpo_tracker"]
FACTORY = [case for case in ALL if case["method"].startswith("flow_factory")]


@pytest.mark.parametrize("case", TRACKER, ids=case_id)
def test_advantages_equal_flow_grpos(case):
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(case["prompts"]))}
    result = group_advantages(
        torch.tensor(case["rewards"], dtype=torch.float64),
        torch.tensor([number[prompt] for prompt in case["prompts"]]),
        std="global" if case["global_std"] else "group",
        eps=case["std_eps_added"],
        eps_added=True,
        clip=None,
    )
    tolerance = family("advantages")["tolerance"]["flow_grpo_tracker"]
    assert_close(result.advantage, case["advantages"], tolerance)
    # the original counts prompts of a single image as prompts without spread
    silent = len(result.zero_variance_groups) + len(result.dropped_groups)
    assert silent / len(number) == pytest.approx(case["zero_std_ratio"])


@pytest.mark.parametrize("case", FACTORY, ids=case_id)
def test_advantages_equal_flow_factorys(case):
    decline(case, "one_pass_float32_std")
    tolerance = dict(family("advantages")["tolerance"]["flow_factory"])
    if "float32_statistics" in case.get("quirks", []):
        tolerance["atol"] = 2e-5
    result = group_advantages(
        {name: torch.tensor(values) for name, values in case["rewards"].items()},
        torch.tensor(case["group_id"]),
        std="global" if case["global_std"] else "group",
        eps=case["std_floor"],
        clip=None,
        combine=case["method"].removeprefix("flow_factory_"),
        weights=case["reward_weights"],
    )
    assert_close(result.advantage, case["advantages"], tolerance)


def test_by_hand():
    # rewards 0 1 | 2 4 with means .5 and 3; population std of all four: sqrt(2.1875)
    rewards, group = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([7, 7, 1, 1])
    expected = np.array([-0.5, 0.5, -1.0, 1.0]) / np.sqrt(2.1875)
    result = group_advantages(rewards, group)
    assert result.advantage.tolist() == pytest.approx(expected.tolist())
    assert result.valid.all() and not result.zero_variance_groups and not result.dropped_groups
    assert group_advantages(rewards, group, std="group").advantage.tolist() == [-1.0, 1.0, -1.0, 1.0]
    assert group_advantages(rewards, group, std="group", clip=0.25).advantage.abs().max() == 0.25


def test_flow_grpos_worked_example_in_any_order():
    # Prompts a b a c b a with rewards 1 to 6 over the round's population deviation, 1.707825.
    rewards, group = torch.arange(1.0, 7.0), torch.tensor([0, 1, 0, 2, 1, 0])
    expected = torch.tensor([-1.36618, -0.87826, -0.19517, 0.0, 0.87826, 1.56135], dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    # One image of prompt c is a group of one, which is dropped here: a second with the same score keeps it, at 0.
    twice = torch.cat([rewards, rewards[3:4]]), torch.cat([group, group[3:4]])
    scale = 1.707825 / twice[0].std(correction=0)
    plain = group_advantages(*twice).advantage[:6]
    torch.testing.assert_close(plain * (1 / scale), expected, rtol=0, atol=2e-4)
    moved = group_advantages(rewards[order], group[order], std="group").advantage
    assert torch.equal(moved, group_advantages(rewards, group, std="group").advantage[order])
    affine = group_advantages(2 * rewards + 3, group, std="group").advantage
    torch.testing.assert_close(affine[order], moved, rtol=0, atol=1e-4)


@given(seed=st.integers(0, 999), constant=st.floats(-50, 50), std=st.sampled_from(["global", "group"]))
def test_a_prompt_constant_does_not_change_the_order_or_sign(seed, constant, std):
    generator = torch.Generator().manual_seed(seed)
    rewards, group = torch.rand(12, generator=generator, dtype=torch.float64), torch.arange(12) % 3
    plain = group_advantages(rewards, group, std=std).advantage
    moved = group_advantages(rewards + constant * (group == 1), group, std=std).advantage
    assert torch.equal(plain.sign(), moved.sign())
    for number in range(3):
        assert plain[group == number].mean().abs() < 1e-12
        assert torch.equal(plain[group == number].argsort(), moved[group == number].argsort())
    if std == "group":
        torch.testing.assert_close(moved, plain, rtol=0, atol=1e-9)


def test_masked_rows_are_as_if_they_had_never_been():
    rewards = torch.tensor([0.2, 0.9, float("nan"), 0.4, 0.1, 0.8])
    group, mask = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([True, True, False, True, True, True])
    result = group_advantages(rewards, group, mask=mask)
    survivors = group_advantages(rewards[mask], group[mask])
    assert torch.equal(result.advantage[mask], survivors.advantage)
    assert result.advantage[2] == 0 and torch.equal(result.valid, mask)


def test_groups_with_one_survivor_are_dropped_and_silent_groups_named():
    rewards, group = torch.tensor([0.1, 0.7, 0.1, 0.1, 0.3, 0.9]), torch.tensor([4, 4, 5, 5, 6, 6])
    mask = torch.tensor([True, False, True, True, True, True])
    result = group_advantages(rewards, group, mask=mask)
    assert result.dropped_groups == (4,) and result.zero_variance_groups == (5,)
    assert result.valid.tolist() == [False, False, True, True, True, True]
    assert result.advantage[:4].tolist() == [0.0] * 4 and result.advantage[4] < 0 < result.advantage[5]


def test_equal_rewards_give_exact_zeros():
    # 0.1 three times has a mean that is not 0.1 in binary; that must not be divided by 1e-6
    result = group_advantages(torch.full((3,), 0.1, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
    assert result.advantage.tolist() == [0.0] * 3


@pytest.mark.parametrize("combine", ["sum", "gdpo"])
def test_a_reward_may_apply_to_some_prompts_only(combine):
    nan = float("nan")
    group = torch.tensor([0, 0, 1, 1])
    both = {"a": torch.tensor([0.0, 1.0, 0.0, 1.0]), "b": torch.tensor([nan, nan, 1.0, 5.0])}
    result = group_advantages(both, group, combine=combine, weights={"b": 2.0})
    assert result.valid.all() and torch.isfinite(result.advantage).all()
    # group 0 knows reward a alone, group 1 their weighted sum: deviations .5 and (1 + 2 * 4) / 2 = 4.5, or
    # with each reward normalised first 1 and 1 + 2 * 1 = 3
    ratio = (result.advantage[3] / result.advantage[1]).item()
    assert ratio == pytest.approx(9.0 if combine == "sum" else 3.0)
    with pytest.raises(ValueError, match="all or none of group 0"):
        group_advantages(both | {"b": torch.tensor([nan, 1.0, 1.0, 5.0])}, group, combine=combine)


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (torch.zeros(3), {}, "shape"),
        (torch.tensor([0.0, float("nan"), 1.0, 0.0]), {}, "all or none"),
        (torch.tensor([0.0, float("inf"), 1.0, 0.0]), {}, "finite"),
        (torch.full((4,), float("nan")), {}, "at least one finite reward"),
        (torch.zeros(4), {"mask": torch.zeros(4, dtype=torch.bool)}, "at least one valid row"),
        (torch.zeros(4), {"mask": torch.zeros(3, dtype=torch.bool)}, "mask of shape"),
        (torch.zeros(4), {"std": "batch"}, "std"),
        (torch.zeros(4), {"combine": "mean"}, "combine"),
        ({"a": torch.zeros(4)}, {"weights": {"b": 1.0}}, "unknown rewards"),
        ({}, {}, "at least one reward"),
    ],
)
def test_malformed_rewards_are_refused(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, torch.tensor([0, 0, 1, 1]), **options)
