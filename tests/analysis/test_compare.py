import pytest
import torch
from safetensors.torch import save_file

from imgrl.analysis.compare import compare, pair
from imgrl.analysis.figures import Settings
from imgrl.errors import ConfigError, ModelError


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


def test_weights_that_cannot_be_compared_are_named_and_buffers_are_not(tmp_path):
    def saved(name, tensors):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    narrow = {name: torch.ones(8, 8).to(torch.float8_e4m3fn) for name in ("a", "b")}
    packed = {"packed": torch.ones(8, 4, dtype=torch.uint8)}
    ids = {"position_ids": torch.arange(16)[None], "index": torch.ones(4, 4, dtype=torch.int64)}
    base = saved("base.safetensors", narrow | packed | ids | {"embed": torch.randn(12, 10)})
    assert pair(base, [base]).notes == (
        "2 tensors are stored as float8_e4m3fn, which cannot be compared, and left out, such as a",
        "1 tensor is stored as uint8, which cannot be compared, and left out, such as packed",
    )
    assert pair(base, [base], "embed").notes == ()
    with pytest.raises(
        ConfigError, match="'packed' fits only tensors stored as uint8, which cannot be compared"
    ):
        pair(base, [base], "packed")
    alone = saved("alone.safetensors", narrow | ids | {"bias": torch.randn(8)})
    with pytest.raises(
        ModelError, match="only matrices in common that are stored as float8_e4m3fn.*such as a: save"
    ):
        pair(alone, [alone])
