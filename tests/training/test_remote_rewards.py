"""A run whose reward server is killed in the middle of a round: samples are masked, nothing becomes a zero."""

import json
import threading
from pathlib import Path

import pytest
from reward_servers import answers, free_port, serve_file, wait_until
from small_runs import RewardSpec, rows_of, start

from imgrl.errors import RewardError
from imgrl.training.image_loop import Trainer
from imgrl.training.reporting import Silent

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

ROUNDS, IMAGES, CALL = 4, 6, 2  # 3 groups of 2 images, and a call for each

# Brightness in 8 bits, as images travel. Told to die, the server answers one more call and is gone in the next.
REWARD = """
import os, signal
from pathlib import Path

LAST = Path(__file__).with_name("last")
answered = 0

def reward(images, prompts):
    global answered
    if LAST.exists():
        answered += 1
        if answered > 1:
            LAST.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return ((images * 255).round() / 255).contiguous().mean((1, 2, 3))
"""


class Server:
    """A reward server in a process of its own, always at the same address."""

    def __init__(self, folder):
        self.file, self.last, self.port = folder / "mine.py", folder / "last", free_port()
        self.file.write_text(REWARD)
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = start(serve_file, self.port, str(self.file))
        wait_until(lambda: answers(self.port) or not self.process.is_alive(), "the server did not start")
        assert self.process.is_alive()

    def end(self):
        self.process.kill()
        self.process.join(10)


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.end()


class Between(Silent):
    """Does something after a round."""

    def __init__(self, **actions):
        self.actions = actions

    def round_end(self, round, metrics):
        self.actions.get(f"round_{round}", lambda: None)()


def rounds(made, **actions):
    """Train, and return the rows of the rounds."""
    assert Trainer(made, reporter=Between(**actions)).train().rounds == ROUNDS
    found = [row for row in rows_of(made.run.dir) if "reward" in row]
    assert [row["round"] for row in found] == list(range(1, ROUNDS + 1))
    assert [row["optimizer_steps"] for row in found] == list(range(1, ROUNDS + 1))  # no lost step
    return found


@pytest.fixture
def undisturbed(recipe, tmp_path):
    """The same run with the same reward in this process: its rows, and every round's scores."""
    scores, by_round = [], []

    def local(images, prompts):
        scores.extend(((images * 255).round() / 255).contiguous().mean((1, 2, 3)).tolist())
        return scores[-len(prompts) :]

    made = recipe(
        run_rounds=ROUNDS, run_dir=str(tmp_path / "undisturbed"), rewards={"mine": RewardSpec(use=local)}
    )
    keep = {f"round_{n}": lambda: by_round.append(scores[-IMAGES:]) for n in range(1, ROUNDS + 1)}
    return rounds(made, **keep), by_round


def far(recipe, server, *, budget, **settings):
    return recipe(
        run_rounds=ROUNDS,
        scoring_failure_budget=budget,
        rewards={"mine": RewardSpec(use="remote", args={"url": server.url}, batch=CALL, **settings)},
    )


def test_a_round_with_a_dead_server_is_masked_and_the_next_is_whole(recipe, server, undisturbed):
    reference, scores = undisturbed
    made = far(recipe, server, budget=0.7, retries=0)
    found = rounds(made, round_2=server.last.touch, round_3=lambda: server.start())
    assert [row["reward/failed"] for row in found] == [0, 0, 4, 0]
    assert [row["reward/mine/failed"] for row in found] == [0, 0, 4, 0]
    (fault,) = map(json.loads, (Path(made.run.dir) / "faults.jsonl").read_text().splitlines())
    assert "refused" in fault.pop("last")  # of the last call that failed: nobody listened
    assert fault == {"round": 3, "reward": "mine", "failed": 4, "images": 6}
    assert [row["reward/masked"] for row in found] == pytest.approx([0, 0, 4 / 6, 0])
    assert [row["groups/dropped"] for row in found] == pytest.approx([0, 0, 2 / 3, 0])
    for mine, other in zip(found[:2], reference[:2], strict=True):
        assert mine["reward"] == pytest.approx(other["reward"], abs=1e-6)
    # The mean over the two images that were scored; as zeros, the other four would have made it a third of that.
    assert found[2]["reward"] == pytest.approx(sum(scores[2][:CALL]) / CALL, abs=1e-6)
    assert found[3]["reward"] > 0.5 * reference[3]["reward"] > 0


def test_patience_bridges_a_restart_without_a_trace(recipe, server, undisturbed):
    """The server is back before the retries are used up: the very run that nobody disturbed."""

    def revive():
        server.process.join(60)
        server.start()

    watch = threading.Thread(target=revive, daemon=True)
    watch.start()
    made = far(recipe, server, budget=0.0, retries=10, backoff=0.1)
    found = rounds(made, round_2=server.last.touch)
    watch.join(60)
    assert not server.last.exists()  # it did die
    assert [row["reward/failed"] for row in found] == [0] * ROUNDS
    for mine, other in zip(found, undisturbed[0], strict=True):
        assert mine["reward"] == pytest.approx(other["reward"], abs=1e-6)


def test_a_server_that_stays_dead_stops_the_run(recipe, server):
    made = far(recipe, server, budget=0.5, retries=0)
    with pytest.raises(RewardError, match="'mine' failed on 4 of 6 images, more than the budget of 50%"):
        Trainer(made, reporter=Between(round_2=server.last.touch)).train()
    assert [row["round"] for row in rows_of(made.run.dir) if "reward" in row] == [1, 2]


def test_a_server_that_is_not_there_is_found_before_the_model_is_loaded(recipe):
    made = recipe(
        model_path="nobody/nowhere",
        rewards={"mine": RewardSpec(use="remote", args={"url": f"http://127.0.0.1:{free_port()}"})},
    )
    with pytest.raises(RewardError, match="cannot be used .*refused"):
        Trainer(made).train()


def test_three_forms_of_one_reward_train_alike(recipe, server, undisturbed, tmp_path):
    """A function (``undisturbed``), a file and a server: the same curve."""
    from_file = recipe(
        run_rounds=ROUNDS,
        run_dir=str(tmp_path / "file"),
        rewards={"mine": RewardSpec(use=f"{server.file}:reward")},
        scoring_cache=str(tmp_path / "scores.db"),
    )
    from_server = far(recipe, server, budget=0.0, retries=0)
    curves = [
        [row["reward"] for row in rows] for rows in (undisturbed[0], rounds(from_file), rounds(from_server))
    ]
    assert curves[1] == pytest.approx(curves[0], abs=1e-6) and curves[2] == pytest.approx(curves[0], abs=1e-6)
