"""The memory of earlier rounds: how much it holds, what it gives up, how processes share it."""

import torch

from imgrl.rewards.features import Features
from imgrl.rewards.learning import Alone
from imgrl.rewards.replay import Replay


def test_replay_holds_what_fits_and_shares_it_out():
    generator = torch.Generator().manual_seed(0)
    replay = Replay(capacity=6)

    def numbered(low, high):
        rows = torch.arange(low, high).float()
        return Features(rows[:, None], rows[:, None, None])

    replay.add(numbered(0, 4), generator)
    replay.add(numbered(4, 8), generator)
    held = set(replay.state_dict(Alone())["overall"].flatten().tolist())
    assert len(replay) == len(held) == 6 and held <= set(map(float, range(8))) and max(held) > 3
    replay.add(numbered(8, 24), generator)  # more than it can hold
    assert len(replay) == 6 and min(replay.state_dict(Alone())["overall"]) >= 8
    drawn = replay.draw(100, generator)
    assert torch.equal(drawn.overall[:, 0], drawn.patches[:, 0, 0])
    assert set(drawn.overall.flatten().tolist()) == set(
        replay.state_dict(Alone())["overall"].flatten().tolist()
    )

    class Second(Alone):
        rank, size = 1, 2

    other = Replay(capacity=6)
    other.load_state_dict(replay.state_dict(Alone()), Second())
    assert torch.equal(other.state_dict(Alone())["overall"], replay.state_dict(Alone())["overall"][3:])


def test_what_many_processes_kept_does_not_overfill_one():
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(24.0)
    replay = Replay(capacity=6)
    replay.load_state_dict(
        {"overall": rows[:, None], "patches": rows[:, None, None]}, Alone()
    )  # of four processes
    assert len(replay) == 6
    replay.add(Features(torch.full((6, 1), -1.0), torch.full((6, 1, 1), -1.0)), generator)
    assert (replay.draw(20, generator).overall == -1).all()  # it still takes new ones
