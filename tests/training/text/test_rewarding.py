"""Rewards as TRL calls them, and what several of them say together: sums by hand."""

import math

import pytest
import torch

from imgrl.errors import RewardError
from imgrl.rewards.base import Reward
from imgrl.rewards.calling import Patience
from imgrl.rewards.resolve import make
from imgrl.training.text.rewarding import Silence, TextReward, population_advantages, total_of

NAN = math.nan


def text_reward(function, *, size, budget=0.25):
    reward = Reward("own", function, patience=Patience(retries=0))
    return TextReward(reward, budget=budget, columns=(), group_size=size)


def test_neighbouring_groups_with_the_same_prompt_vote_by_themselves():
    texts = ["answer 4", "answer 4", "answer 5", "answer 5", "answer 5", "answer 4"]
    assert text_reward(make("vote"), size=3)(["p"] * 6, texts) == [1, 1, 0, 1, 1, 0]  # together: a tie


def test_silence_is_heard_at_the_start_only():
    nothing, word = torch.zeros(4, 2, dtype=torch.bool), torch.tensor([[False, True]])
    silence = Silence(most=2)
    silence.listen(nothing, ["a", "b"])
    with pytest.raises(
        RewardError, match=r"No reward \(a, b\) applied to any completion of the first 2 rollouts"
    ):
        silence.listen(nothing, ["a", "b"])
    silence = Silence(most=2)
    for said in (nothing, word, nothing, nothing, nothing):
        silence.listen(said, ["a", "b"])


class Sour:
    """Judges whole groups, and fails on those of one prompt."""

    groupwise = True

    def __call__(self, completions, prompts):
        assert len(completions) == 2
        if prompts[0] == "lemon":
            raise OSError("sour")
        return [float(len(text)) for text in completions]


def test_a_groupwise_reward_fails_by_group_and_the_budget_counts_completions():
    prompts, texts = ["a", "a", "lemon", "lemon"], ["x", "xx", "xxx", "xxxx"]
    reward = text_reward(Sour(), size=2, budget=0.5)
    assert reward(prompts, texts) == [1, 2, None, None] and reward.failed == [False, False, True, True]
    reward.require_few(torch.tensor(reward.failed))
    with pytest.raises(RewardError, match="failed on all 2 completions .*failure_budget of 50%.*sour"):
        reward.require_few(torch.tensor(reward.failed[2:]))
    assert reward(["a"] * 4, texts) == [1, 2, 3, 4] and not any(reward.failed) and reward.failure is None


def test_the_budget_is_of_the_completions_of_all_processes():
    """Two of four here are two of eight on both processes: just within a quarter."""
    reward = text_reward(Sour(), size=2)
    reward(["a", "a", "lemon", "lemon"], ["x"] * 4)
    here, good = torch.tensor(reward.failed), torch.zeros(4, dtype=torch.bool)
    reward.require_few(torch.cat([good, here]))
    bad = torch.tensor([True, False, False, False])
    with pytest.raises(RewardError, match="failed on 3 of 8 completions .*failure_budget of 25%.*sour"):
        reward.require_few(torch.cat([bad, here]))
    other = text_reward(Sour(), size=2)  # the other process, where one more failed
    with pytest.raises(RewardError, match="failed on 3 of 8 .*another process says why"):
        other.require_few(torch.cat([bad, here]))


# Two rewards with weights 1 and 2 and one that is watched; groups of two.
CASES = {
    "all apply": ([[1, 10, NAN], [2, 20, NAN]], [], [21, 42]),
    "one does not apply to the prompt": ([[1, NAN, 5], [2, NAN, 5]], [], [1, 2]),
    "one says nothing of a completion alone": ([[1, 10, 5], [2, NAN, 5]], [], [21, NAN]),
    "none with a weight applies": ([[NAN, NAN, 5], [NAN, NAN, 5]], [], [NAN, NAN]),
    "one failed on the group": ([[1, NAN, 5], [2, NAN, 5]], [(0, 1), (1, 1)], [NAN, NAN]),
    "a watched one failed": ([[1, 10, NAN], [2, 20, NAN]], [(0, 2), (1, 2)], [21, 42]),
}


@pytest.mark.parametrize("name", CASES)
def test_totals_by_hand(name):
    scores, failures, expected = CASES[name]
    failed = torch.zeros(4, 3, dtype=torch.bool)
    for row, reward in failures:
        failed[row, reward] = True
    scores = torch.tensor([*scores, [3.0, 30.0, 0.0], [4.0, 40.0, 0.0]])  # beside a group without trouble
    total = total_of(scores, failed, torch.tensor([1.0, 2.0, 0.0]), size=2)
    torch.testing.assert_close(total, torch.tensor([*expected, 63.0, 84.0]), equal_nan=True)


def test_advantages_by_the_population_deviation_by_hand():
    """1, 3 and NaN: mean 2, deviation 1. Alone, alike or unjudged: nothing to learn."""
    total = torch.tensor([1.0, 3.0, NAN, 5.0, NAN, NAN, 0.1, 0.1, 0.1, NAN, NAN, NAN])
    expected = torch.tensor([-1.0, 1.0] + [0.0] * 10)
    torch.testing.assert_close(population_advantages(total, size=3).float(), expected, atol=2e-6, rtol=0)
    assert not population_advantages(torch.full((4,), NAN), size=2).any()


def test_totals_are_those_of_image_rewards_where_a_reward_applies_to_all_or_none_of_a_prompt():
    from imgrl.rewards import RewardSet
    from imgrl.types import Prompt

    values = {"one": [1.0, 2.0, 3.0, 4.0], "two": [None, None, 7.0, 8.0]}
    specs = {
        name: {"use": lambda i, p, own=own: own, "weight": w}
        for (name, own), w in zip(values.items(), (2.0, -0.5), strict=True)
    }
    prompts = [Prompt(id=i, text="p", columns={}) for i in range(4)]
    images = RewardSet.from_specs(specs).score(torch.full((4, 3, 8, 8), 0.5), prompts).total
    scores = torch.tensor([[NAN if x is None else x for x in own] for own in values.values()]).T
    ours = total_of(scores, torch.zeros(4, 2, dtype=torch.bool), torch.tensor([2.0, -0.5]), size=2)
    torch.testing.assert_close(ours, images)
