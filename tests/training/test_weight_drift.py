"""The weights' distance from their start beside the held-out scores: what `imgrl diagnose` says of the same weights."""

import json

import pytest
from small_runs import rows_of
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.training.image_loop import Trainer

NAMES = {"sparsity": "sparsity", "relative_update": "relative_update", "spectral_drift": "drift"}
NAMES["largest_angle"] = "largest_angle"


def diagnosed(base, tuned, file):
    result = CliRunner().invoke(app, ["diagnose", str(base), str(tuned), "--json", str(file), "--no-control"])
    assert result.exit_code == 0, result.output
    layers = [layer for layer in json.loads(file.read_text())["layers"] if len(layer["shape"]) > 1]
    runs = [layer["runs"][0] for layer in layers if layer["name"] != "pos_embed.pos_embed"]  # a fixed table
    assert all(run["drift"] is not None for run in runs if run["relative_update"])
    runs = [run | {"drift": run["drift"] or 0} for run in runs]
    found = {name: [run[name] for run in runs if run[name] is not None] for name in NAMES.values()}
    told = {ours: found[name] for ours, name in NAMES.items() if found[name]}  # k may take in every direction
    return {f"weights/{ours}": sum(values) / len(values) for ours, values in told.items()}


@pytest.mark.parametrize(("train", "init"), [("lora", "gaussian"), ("lora", "pissa"), ("full", "gaussian")])
def test_evaluations_log_how_far_the_weights_have_moved(train, init, recipe, sd3, tmp_path):
    from imgrl.policies import LoraSpec

    lora = LoraSpec(rank=2, alpha=4.0, init=init)
    made = recipe(model_train=train, model_lora=lora, evaluation_every=1, evaluation_weight_drift=999)
    Trainer(made).train()
    before, during, _, after = rows_of(tmp_path / "run")
    assert not any(key.startswith("weights/") for key in before)
    assert 0 < during["weights/relative_update"] < after["weights/relative_update"]
    expected = diagnosed(
        sd3, tmp_path / "run" / ("lora" if train == "lora" else "model"), tmp_path / "diagnose.json"
    )
    assert expected["weights/spectral_drift"] > 0
    found = {key: value for key, value in after.items() if key.startswith("weights/")}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_it_is_off_unless_asked_for(recipe, tmp_path):
    Trainer(recipe(evaluation_every=1)).train()
    assert not any(key.startswith("weights/") for row in rows_of(tmp_path / "run") for key in row)
