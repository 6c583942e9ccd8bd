"""Trackers get the rows of metrics.jsonl, each at its round, before and after a resume."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from small_runs import rows_of

from imgrl.errors import ConfigError
from imgrl.training import checks
from imgrl.training.distributed import World
from imgrl.training.image_loop import Trainer
from imgrl.training.run_folder import finite
from imgrl.training.tracking import Metrics


@pytest.fixture
def trackers(monkeypatch):
    """Every tracker that is made; an accelerate tracker that only notes what it is told stands for TensorBoard's."""
    made = []

    class Noting(GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = True

        def __init__(self, project, folder):
            super().__init__()
            self.project, self.folder, self.rows, self.finished = project, folder, [], False
            made.append(self)

        @property
        def tracker(self):
            return self.rows

        def store_init_configuration(self, values):
            self.settings = values

        def log(self, values, step=None, **options):
            self.rows.append({"round": step, **values})

        def finish(self):
            self.finished = True

    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Noting)
    monkeypatch.setattr(
        checks, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name))
    )
    return made


def untimed(rows):
    return [{k: v for k, v in row.items() if not k.startswith(("seconds/", "minutes"))} for row in rows]


def test_trackers_get_every_row_at_its_round(recipe, trackers):
    made = recipe(run_rounds=1, tracking_trackers=("tensorboard",), tracking_project="mine")
    Trainer(made).train()
    Trainer(dataclasses.replace(made, run=dataclasses.replace(made.run, rounds=3))).train(resume=True)
    first, second = trackers
    assert [row["round"] for row in first.rows] == [0, 1, 1]  # before, the round, after
    assert [row["round"] for row in second.rows] == [2, 3, 3]
    assert finite(first.rows + second.rows) == rows_of(made.run.dir, timings=True)
    for tracker in trackers:
        assert (tracker.project, tracker.folder) == ("mine", made.run.dir) and tracker.finished
        assert all(isinstance(value, int | float | str) for value in tracker.settings.values())
        assert tracker.settings["optimizer.lr"] == 1e-3 and tracker.settings["objective.beta"] == 1.0
    assert [tracker.settings["run.rounds"] for tracker in trackers] == [1, 3]


def test_rounds_lost_in_a_crash_are_told_again(recipe, trackers, monkeypatch):
    """A tracker cannot be rewound as metrics.jsonl is; what it is told last of a round is what counts."""
    made = recipe(run_rounds=3, checkpoint_every=2, tracking_trackers=("tensorboard",))
    real = Trainer._round

    def dying(self, parts, reporter):
        real(self, parts, reporter)
        if self.round == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_round", dying)
    with pytest.raises(KeyboardInterrupt):
        Trainer(made).train()
    monkeypatch.setattr(Trainer, "_round", real)
    Trainer(made).train(resume=True)
    assert [row["round"] for tracker in trackers for row in tracker.rows] == [0, 1, 2, 3, 3, 3]
    first, second = trackers
    assert untimed(first.rows[-1:]) == untimed(second.rows[:1])
    assert untimed(finite(first.rows[:-1] + second.rows)) == rows_of(made.run.dir)


def test_tensorboard_shows_them(recipe):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = recipe(tracking_trackers=("tensorboard",))
    Trainer(made).train()
    events = EventAccumulator(str(Path(made.run.dir) / "imgrl")).Reload()
    for name in ("reward", "train/loss", "heldout/bright"):
        rows = [row for row in rows_of(made.run.dir) if name in row]
        told = events.Scalars(name)
        assert [event.step for event in told] == [row["round"] for row in rows]
        assert [event.value for event in told] == pytest.approx([row[name] for row in rows], rel=1e-6)


@pytest.mark.filterwarnings("ignore:.log_with=.*no supported trackers")
def test_a_tracker_that_is_not_installed_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(
        checks, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    )
    made = recipe(model_path="nobody/nowhere", tracking_trackers=("wandb",))
    with pytest.raises(
        ConfigError, match="names wandb, which is not installed here; run `pip install wandb`"
    ):
        Trainer(made).train()


def test_a_finished_run_that_is_resumed_has_one_final_row(recipe):
    made = recipe()
    for resume in (False, True):
        Trainer(made).train(resume=resume)
    assert [row["round"] for row in rows_of(made.run.dir) if "final" in row] == [2]


def test_going_back_takes_the_rows_and_faults_of_later_rounds_with_it(tmp_path):
    quiet = SimpleNamespace(is_main_process=True, log=lambda values, step: None)
    metrics = Metrics(tmp_path, World(quiet))
    for round in (1, 2, 3):
        metrics.log(round, {"reward": round / 10})
        metrics.fault(round, {"reward": "mine", "failed": round})
    with metrics.faults.open("a") as file:
        file.write('{"round": 1, "rew')  # cut short by a crash
    metrics.rewind(2)
    assert metrics.rows() == [{"round": 1, "reward": 0.1}, {"round": 2, "reward": 0.2}]
    assert metrics.faults.read_text() == (
        '{"round": 1, "reward": "mine", "failed": 1}\n{"round": 2, "reward": "mine", "failed": 2}\n'
    )
