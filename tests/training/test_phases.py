"""The stopwatch of a round."""

import pytest

from imgrl.training import phases
from imgrl.training.phases import Phases


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told."""
    now = [0.0]
    monkeypatch.setattr(phases, "_now", lambda: now[0])
    return now


def test_time_adds_up_by_name(clock):
    told = []
    watch = Phases(told.append)
    for seconds in (2.0, 3.0):
        with watch("update"):
            clock[0] += seconds
    with watch("reward"):
        clock[0] += 0.5
    clock[0] += 100  # outside every phase
    assert watch.seconds == {"update": 5.0, "reward": 0.5}
    assert watch.total() == 5.5 and watch.total("reward") == 0.5
    assert told == ["update", "update", "reward"]


def test_time_counts_even_if_the_phase_fails(clock):
    watch = Phases()
    with pytest.raises(KeyError), watch("reward"):
        clock[0] += 1.5
        raise KeyError
    assert watch.seconds["reward"] == 1.5
