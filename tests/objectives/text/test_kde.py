import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import iqr, norm

from imgrl.objectives.text import kde_scores
from imgrl.objectives.text.adpo_targets import boltzmann


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_log_odds_of_the_smoothed_distribution_function_by_scipy():
    reward = draw(1, 7)
    r = reward[0].numpy()
    h = 0.9 * min(r.std(ddof=1), iqr(r) / 1.34) * 7**-0.2
    f = norm.cdf((r[:, None] - r[None]) / h).mean(1).clip(1 / 14, 13 / 14)
    torch.testing.assert_close(kde_scores(reward)[0], torch.as_tensor(f / (1 - f)).log())


def test_a_vanishing_bandwidth_gives_the_mid_ranks():
    reward = torch.tensor([[3.0, -1.0, 10.0, 0.0]], dtype=torch.float64)
    f = torch.tensor([[2.5, 0.5, 3.5, 1.5]], dtype=torch.float64) / 4
    torch.testing.assert_close(kde_scores(reward, bandwidth=1e-9), f.logit())


def test_an_endless_bandwidth_makes_all_candidates_alike():
    q = boltzmann(kde_scores(draw(2, 6), bandwidth=1e12), temperature=0.5)
    torch.testing.assert_close(q, torch.full_like(q, 1 / 6), atol=1e-9, rtol=0)


@given(seed=st.integers(0, 999), k=st.integers(3, 12))
@settings(deadline=None, max_examples=40)
def test_one_reward_of_a_million_moves_every_other_score_by_a_bounded_amount(seed, k):
    reward = draw(1, k, seed=seed)
    outlier = torch.cat([reward, torch.full((1, 1), 1e6, dtype=torch.float64)], 1)
    before, after = kde_scores(reward), kde_scores(outlier)
    bound = math.log(2 * k + 1)  # the log-odds of the extreme mid-rank among k + 1
    assert after.abs().max() <= bound + 1e-9
    assert (after[:, :k] - before).abs().max() <= 2 * bound
    q = boltzmann(after, temperature=0.5)
    assert q.max() < 0.999 and boltzmann(outlier, temperature=0.5).max() == 1  # the raw target is one-hot


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 100), shift=st.floats(-100, 100))
@settings(deadline=None, max_examples=40)
def test_units_of_the_reward_have_no_influence_and_order_is_kept(seed, scale, shift):
    reward = draw(2, 6, seed=seed)
    torch.testing.assert_close(kde_scores(scale * reward + shift), kde_scores(reward), atol=1e-6, rtol=1e-6)
    order = reward.argsort(-1)
    assert (kde_scores(reward).gather(-1, order).diff(dim=-1) >= 0).all()


def test_equal_rewards_are_all_average_and_negation_mirrors():
    assert not kde_scores(torch.full((1, 5), 0.3)).any()
    reward = draw(1, 6)
    torch.testing.assert_close(kde_scores(-reward), -kde_scores(reward))


def test_a_bandwidth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="bandwidth > 0"):
        kde_scores(torch.zeros(1, 3), bandwidth=0.0)
