import pytest
import torch
from golden_cases import family
from hypothesis import given
from hypothesis import strategies as st

from imgrl.anchor import Constant, Linear, Piecewise, Ramp, adaptive_weight
from imgrl.anchor.schedule import GENEVAL_OLD, OCR_OLD, OCR_SAMPLING, PRESETS

CRD_TABLES = family("crd_loss").get("decay_schedules", [])
NFT_TABLES = family("nft_loss").get("old_policy_decay", [])
NFT_TYPES = ["none", "slow", "medium"]  # decay types 0, 1 and 2


@pytest.mark.parametrize("table", CRD_TABLES, ids=lambda table: str(table["decay"]))
def test_decays_equal_flow_factorys(table):
    decay = str(table["decay"])  # a preset's number, a preset's name, or the four numbers
    if decay.isdigit():
        ramp = list(PRESETS.values())[int(decay)]
    else:
        ramp = PRESETS.get(decay) or Ramp.parse(decay)
    assert [ramp(step) for step in table["steps"]] == pytest.approx(table["values"], rel=0, abs=1e-12)


@pytest.mark.parametrize("table", NFT_TABLES, ids=lambda table: str(table["decay_type"]))
def test_decays_equal_diffusion_nfts(table):
    ramp = PRESETS[NFT_TYPES[table["decay_type"]]]
    assert [ramp(step) for step in table["steps"]] == pytest.approx(table["values"], rel=0, abs=1e-12)


def test_published_decays_at_their_corners():
    # E20: min(.25 + .005 step, .999) and 0 until 75, then .0075 a step up to .999
    assert [OCR_OLD(step) for step in (0, 75, 150)] == pytest.approx([0.25, 0.625, 0.999], abs=1e-12)
    assert [OCR_SAMPLING(step) for step in (74, 75, 175, 209)] == pytest.approx(
        [0, 0, 0.75, 0.999], abs=1e-12
    )
    assert GENEVAL_OLD(0) == 0.25 and GENEVAL_OLD(10**6) == 0.5


def test_other_schedules_by_hand():
    assert Constant(value=0.3)(10**6) == 0.3
    assert [Linear(first=1.0, last=3.0, steps=4)(step) for step in (0, 1, 4, 9)] == [1.0, 1.5, 3.0, 3.0]
    steps = Piecewise(points=((0, 0.1), (5, 0.2), (9, 0.0)))
    assert [steps(step) for step in (0, 4, 5, 8, 9, 99)] == [0.1, 0.1, 0.2, 0.2, 0.0, 0.0]


@pytest.mark.parametrize("text", ["", "0-1-2", "a-0-0-0", "0-0-0-0-0"])
def test_unreadable_ramps_are_refused(text):
    with pytest.raises(ValueError, match="start-value-slope-end"):
        Ramp.parse(text)


def test_disordered_points_are_refused():
    for points in ((), ((1, 0.0),), ((0, 0.0), (0, 1.0))):
        with pytest.raises(ValueError, match="rising steps"):
            Piecewise(points=points)
    with pytest.raises(ValueError, match="steps >= 1"):
        Linear(steps=0)


def test_adaptive_weight_limits():
    # E18: floor, midpoint, value
    rho = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([1e-4, 0.05005, 0.1], dtype=torch.float64)
    torch.testing.assert_close(adaptive_weight(rho, value=0.1), expected, rtol=1e-12, atol=0)


@given(value=st.floats(1e-4, 10), a=st.floats(0, 1), b=st.floats(0, 1))
def test_adaptive_weight_never_falls_with_reward(value, a, b):
    low, high = adaptive_weight(torch.tensor([min(a, b), max(a, b)], dtype=torch.float64), value=value)
    assert low <= high


def test_weight_below_the_floor_is_refused():
    with pytest.raises(ValueError, match="at least its floor"):
        adaptive_weight(torch.zeros(1), value=1e-5)
