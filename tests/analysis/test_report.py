import json

import pytest
import torch
from safetensors.torch import save_file

from imgrl.analysis import Settings, compare, document, pair

SIDES = (8, 24)


@pytest.fixture
def report(tmp_path):
    """Two matrices and a vector, of which 4, 100 and 1 weights change."""
    before = {"v": torch.ones(5), **{f"w{n}": torch.randn(n, n) for n in SIDES}}
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["v"][0] = 2
    after["w8"].view(-1)[:4] *= 2
    after["w24"].view(-1)[:100] *= 2
    for name, state in (("before", before), ("after", after)):
        save_file(state, tmp_path / f"{name}.safetensors")
    settings = Settings(k=(4,))
    pairing = pair(tmp_path / "before.safetensors", [tmp_path / "after.safetensors"])
    return document(pairing, list(compare(pairing, settings)), settings, base="before", tuned=["after"])


def test_totals_by_hand(report):
    (total,) = report["totals"]
    assert (total["parameters"], total["changed"], total["matrices"]) == (5 + 64 + 576, 105, 2)
    assert total["sparsity"] == pytest.approx(1 - 105 / 645)
    assert total["sparsity_of_matrices"] == pytest.approx(1 - 104 / 640)


def test_overlaps_are_pooled_by_changed_weights(report):
    """Shares of a total are means of the matrices' shares, weighted by how much changed in each."""
    (total,) = report["totals"]
    layers = {layer["name"]: layer["runs"][0] for layer in report["layers"]}
    for pooled in total["overlaps"]:
        parts = [
            next(
                o for o in layers[f"w{n}"]["overlaps"] if all(o[k] == pooled[k] for k in ("mask", "weights"))
            )
            for n in SIDES
        ]
        for key in ("observed", "density_null", "matched_null", "noise_null"):
            mean = (4 * parts[0][key] + 100 * parts[1][key]) / 104
            assert pooled[key] == pytest.approx(mean), key
        assert pooled["over_matched"] == pytest.approx(pooled["observed"] / pooled["matched_null"])


def test_a_report_is_json(report):
    assert json.loads(json.dumps(report, allow_nan=False))["settings"]["k"] == [4]
    assert report["agreement"] == []
