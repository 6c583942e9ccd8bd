import pytest
import torch
from golden_cases import assert_close, case_id, cases, family, tensor
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from imgrl.flow import TimeSampler, sigma_schedule
from imgrl.flow.times import stratified_indices, stratified_sigmas

KINDS = ["discrete", "discrete_with_init", "discrete_wo_init", "uniform", "logit_normal"]


@pytest.mark.parametrize("case", cases("time_samplers"), ids=case_id)
def test_times_equal_the_recorded_ones(case):
    draws = tensor(case["uniform_draws"], torch.float64)
    low, high = case["timestep_range"]
    if case["strategy"].startswith("discrete"):
        levels = tensor(case["scheduler_timesteps"], torch.float64) / 1000
        sigmas = levels[stratified_indices(draws, levels, case["strategy"], low=low, high=high)]
    else:
        shift = case["time_shift"]
        sigmas = stratified_sigmas(draws, case["strategy"], low=low, high=high, shift=shift)
        sigmas = sigmas[torch.tensor(case["permutation"])]
    assert_close(sigmas * 1000, case["timesteps"], family("time_samplers")["tolerance"])


@given(
    kind=st.sampled_from(KINDS), count=st.integers(1, 20), steps=st.integers(4, 40), seed=st.integers(0, 99)
)
def test_draws_lie_in_range_and_repeat_by_seed(kind, count, steps, seed):
    sigmas, sampler = sigma_schedule(steps), TimeSampler(kind=kind, count=count)
    first, again = (sampler.draw(sigmas, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (count,) and first.dtype == sigmas.dtype
    assert (first > 0).all() and (first <= 1).all()
    if kind.startswith("discrete"):
        assert torch.isin(first, sigmas[:-2]).all()  # the cleanest level of the rollout is never trained
    if kind == "discrete_with_init":
        assert first[0] == 1


def test_nine_of_ten_levels_are_each_drawn_once():
    # Ten levels, the last excluded, nine strata: nothing is left to chance.
    sigmas = sigma_schedule(10)
    drawn = TimeSampler(count=9).draw(sigmas, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, sigmas[:9])


def test_range_restricts_the_levels():
    sigmas = sigma_schedule(10, kind="explicit")
    drawn = TimeSampler(count=50, low=0.1, high=0.5).draw(sigmas)
    assert (drawn <= 0.9).all() and (drawn >= 0.5).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True), st.integers(0, 99))
def test_bands_give_one_level_each(edges, seed):
    edges = sorted(edges)
    sampler = TimeSampler(kind="bands", edges=tuple(edges), count=len(edges) - 1)
    drawn = 1 - sampler.draw(sigma_schedule(10), torch.Generator().manual_seed(seed)).double()
    low, high = torch.tensor(edges[:-1]), torch.tensor(edges[1:])
    assert (drawn >= low - 1e-6).all() and (drawn <= high + 1e-6).all()


def test_a_level_counts_as_its_weight_says():
    assert [TimeSampler(count=2).weight(level) for level in range(2)] == [1.0, 1.0]
    assert [TimeSampler(count=2, weights=(5.0, 0.5)).weight(level) for level in range(2)] == [5.0, 0.5]


@pytest.mark.parametrize(
    "bad",
    [
        {"count": 0},
        {"low": 0.5, "high": 0.5},
        {"high": 1.5},
        {"shift": 0.0},
        {"count": 2, "weights": (1.0,)},
        {"count": 2, "weights": (1.0, 0.0)},
        {"count": 1, "weights": (float("nan"),)},
        {"edges": (0.0, 1.0), "count": 1},
        {"kind": "bands", "count": 2, "edges": (0.0, 1.0)},
        {"kind": "bands", "count": 2, "edges": (0.0, 0.5, 0.5)},
        {"kind": "bands", "count": 1, "edges": (-0.1, 0.5)},
        {"kind": "bands", "count": 1, "edges": (0.1, 0.5), "shift": 2.0},
    ],
)
def test_impossible_samplers_are_refused(bad):
    with pytest.raises(ValueError, match="Expected"):
        TimeSampler(**bad)


def test_unknown_kind_and_empty_range_are_refused():
    with pytest.raises((ValueError, TypeCheckError)):
        TimeSampler(kind="sobol")
    with pytest.raises(ValueError, match="at least 2 noise levels"):
        TimeSampler(low=0.98, high=1.0).draw(sigma_schedule(4, kind="explicit"))
