"""What is watched of rewards that learn: when each alarm sounds, and that a run tells it."""

import functools

import pytest
from small_runs import rows_of

from imgrl.training.image_loop import Trainer
from imgrl.training.learning import Alarms
from imgrl.training.reporting import Silent


def row(**changes):
    return {
        "reward/like/accuracy": 0.7,
        "reward/like/spread": 0.2,
        "group_diversity": 0.4,
        "policy_waited": 0.0,
        "groups/zero_variance": 0.0,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward/like/accuracy": 1.0}, "tells every image"),
        ({"reward/like/accuracy": 0.51}, "no longer tells"),
        ({"group_diversity": 0.1}, "collapsing"),
        ({"groups/zero_variance": 0.9}, "score alike"),
    ],
)
def test_an_alarm_sounds_once_after_it_has_held(changes, sentence):
    alarms = Alarms(patience=3)
    assert alarms(row()) == []
    told = [alarms(row(**changes)) for _ in range(6)]
    assert [len(stories) for stories in told] == [0, 0, 1, 0, 0, 0]
    assert sentence in told[2][0]
    assert alarms(row()) == [] and alarms(row(**changes)) == []  # it must hold again


def test_a_spread_that_is_gone_is_told_by_its_share_of_the_start():
    """Logits that differ in the third digit only: no group scores exactly alike, so nothing else can tell."""
    alarms = Alarms(patience=3)
    waiting = [row(policy_waited=1.0, **{"reward/like/spread": 1e-6})] * 4  # a head that has not learned yet
    start = [row(**{"reward/like/spread": value}) for value in (0.1, 0.2, 0.3)]  # 0.2 on average
    most = [row(**{"reward/like/spread": 0.021})] * 5  # just more than a tenth
    assert [story for each in (*waiting, *start, *most) for story in alarms(each)] == []
    gone = row(**{"reward/like/spread": 0.019})
    told = [alarms(each) for each in (gone, gone, waiting[0], gone, gone)]
    assert [len(stories) for stories in told] == [0, 0, 0, 1, 0]
    assert (
        "'like' gives the images of a prompt differ by 0.019, less than 10% of the 0.2 at the" in told[3][0]
    )


def test_a_policy_that_mostly_waits_is_reported():
    alarms = Alarms(patience=3)
    told = [story for n in range(12) for story in alarms(row(policy_waited=float(n % 3 != 0)))]
    assert len(told) == 1 and "waited for its reward in 6 of 9 rounds" in told[0]


def test_runs_whose_rewards_do_not_learn_are_not_watched():
    assert Alarms(patience=1)({"reward": 0.5, "groups/zero_variance": 1.0}) == []


def test_a_resumed_run_remembers_where_it_began():
    alarms = Alarms(patience=2)
    alarms.replay([row(), row(group_diversity=0.1)])
    assert "collapsing" in alarms(row(group_diversity=0.1))[0]


# ------------------------------------------------------------------ in a run


class Fading:
    """Brightness, whose differences all but vanish after two rounds; remembers what it said of whole rounds."""

    def __init__(self):
        self.round, self.said = 0, []

    def __call__(self, images, prompts):
        scores = images.mean((1, 2, 3)) * (1.0 if self.round < 2 else 1e-3)
        if len(prompts) == 6:  # three groups of two; probes and held-out images are fewer
            self.said.append(scores.tolist())
        return scores

    def learn(self, images, prompts, *, peers):
        self.round += 1
        return {"accuracy": 1.0}

    def state_dict(self, peers):
        return {}

    def load_state_dict(self, state, peers):
        pass


class Recording(Silent):
    """Keeps what is told and after which round."""

    def __init__(self):
        self.rounds, self.told = 0, []

    def round_end(self, round, metrics):
        self.rounds = round

    def message(self, text):
        self.told.append((self.rounds, text))


def test_a_run_tells_its_alarms_and_logs_what_they_watch(recipe, monkeypatch):
    monkeypatch.setattr("imgrl.training.image_loop.Alarms", functools.partial(Alarms, patience=2))
    fading, reporter = Fading(), Recording()
    made = recipe(rewards={"fade": fading}, run_rounds=5)
    Trainer(made, reporter=reporter).train()
    found = [row for row in rows_of(made.run.dir) if "reward" in row]
    assert all(row["groups/zero_variance"] == 0 for row in found)
    for row, scores in zip(found, fading.said, strict=True):
        # the standard deviation of two numbers is half of their distance
        pairs = [abs(scores[at] - scores[at + 1]) / 2 for at in (0, 2, 4)]
        assert row["reward/fade/spread"] == pytest.approx(sum(pairs) / 3, rel=1e-4)
    told = [(round, text) for round, text in reporter.told if "'fade'" in text]
    assert [round for round, _ in told] == [2, 4]
    assert "tells every image" in told[0][1] and "less than 10% of" in told[1][1]
