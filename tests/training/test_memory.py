"""The memory of a training process does not grow with its rounds."""

import json
from pathlib import Path

import pytest
from small_runs import Batch, start

FIRST, LAST = 10, 40


def measure(recipe, file):
    """Train in this process and write down how many bytes it holds after each round."""
    import psutil

    from imgrl.training.image_loop import Trainer
    from imgrl.training.reporting import Silent

    held = []

    class Weighing(Silent):
        def round_end(self, round, metrics):
            held.append(psutil.Process().memory_info().rss)

    Trainer(recipe, reporter=Weighing()).train()
    Path(file).write_text(json.dumps(held))


@pytest.mark.slow
def test_forty_rounds_take_no_more_memory_than_ten(recipe, tmp_path):
    """Kept pixels of the 30 rounds in between alone would be 30 x 16 x 3 x 64 x 64 float32, 23.6 MB; a third of
    them is far above what the allocator's luck makes of a run, and what is not a tensor counts as well.
    """
    made = recipe(
        run_rounds=LAST,
        batch=Batch(groups=4, group_size=4, micro_groups=2),
        model_height=64,
        model_width=64,
        evaluation_every=5,
        checkpoint_every=5,
    )
    process = start(measure, made, tmp_path / "held.json")
    process.join(600)
    assert process.exitcode == 0
    held = json.loads((tmp_path / "held.json").read_text())
    kept = (LAST - FIRST) * 16 * 3 * 64 * 64 * 4
    assert max(held[FIRST:]) - held[FIRST - 1] < kept / 3
