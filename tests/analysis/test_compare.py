import pytest
import torch
from safetensors.torch import save_file

from imgrl.analysis.compare import compare, pair
from imgrl.analysis.figures import Settings
from imgrl.errors import ModelError


@pytest.fixture
def files(tmp_path):
    """A base of eleven layers and a LoRA of two of them."""
    state = {f"layers.{i}.weight": torch.randn(12, 10) for i in range(11)}
    save_file(state, tmp_path / "base.safetensors")
    factors = {}
    for i in (10, 9):
        factors[f"layers.{i}.lora_A.weight"] = torch.randn(2, 10)
        factors[f"layers.{i}.lora_B.weight"] = torch.randn(12, 2)
    save_file(factors, tmp_path / "lora.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "lora.safetensors"


def test_only_what_a_lora_changes_is_measured_in_natural_order(files):
    base, lora = files
    pairing = pair(base, [lora])
    assert pairing.names == ("layers.9.weight", "layers.10.weight")
    assert (pairing.parameters, pairing.untouched) == (240, 9 * 120)
    seen = []
    layers = list(compare(pairing, Settings(k=(4,)), lambda name, count: seen.append((name, count))))
    assert seen == [("layers.9.weight", 120), ("layers.10.weight", 120)]
    assert [layer.name for layer in layers] == list(pairing.names)


def test_a_lora_beside_a_whole_model_is_measured_everywhere(files):
    base, lora = files
    pairing = pair(base, [lora, base])
    assert len(pairing.names) == 11 and pairing.untouched == 0
    layer = next(iter(compare(pairing, Settings(k=(4,)))))
    assert [change.changed for change in layer.changes] == [0, 0]


def test_a_base_that_is_a_lora_is_refused(files):
    with pytest.raises(ModelError, match="without its base"):
        pair(files[1], [files[0]])
