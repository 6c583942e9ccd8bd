import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imgrl.analysis.weights import blocks, open_weights
from imgrl.errors import ModelError
from imgrl.policies.export import LORA_FILE


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.inner = nn.ModuleDict({"one": nn.Linear(16, 24), "two": nn.Linear(24, 16)})
        self.conv = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(16, 8)


def whole(matrix):
    return torch.cat([matrix.rows(a, b) for a, b in blocks(matrix.shape, 64)])


@pytest.fixture
def base(tmp_path):
    """A saved base, and a fresh copy of it on each call."""
    torch.manual_seed(0)
    state = Net().state_dict()
    save_file(state, tmp_path / "base.safetensors")

    def fresh():
        net = Net()
        net.load_state_dict(state)
        return net

    return fresh


def adapted(net, folder, **options):
    """Save a LoRA with random factors and return the weights as peft merges them."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(net, LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


def assert_merged_as(expected, path, base_path):
    base = open_weights(base_path)
    found = open_weights(path, base)
    assert found.keys() == expected.keys()
    changed = 0
    for name, matrix in found.items():
        torch.testing.assert_close(
            whole(matrix).flatten(), expected[name].flatten().float(), rtol=1e-5, atol=1e-6
        )
        changed += matrix is not base[name]
    return changed


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"r": 4, "lora_alpha": 16, "target_modules": ["one", "two"]}, 2),
        ({"r": 4, "lora_alpha": 16, "target_modules": ["one"], "use_rslora": True}, 1),
        (
            {
                "r": 4,
                "target_modules": ["one", "two"],
                "rank_pattern": {"inner.two": 2},
                "alpha_pattern": {"inner.two": 5},
            },
            2,
        ),
        ({"r": 2, "lora_alpha": 4, "target_modules": ["embed", "conv"]}, 2),
        ({"r": 2, "target_modules": ["one"], "modules_to_save": ["head"]}, 3),
        ({"r": 4, "lora_alpha": 8, "target_modules": ["one"], "init_lora_weights": "pissa"}, 1),
    ],
    ids=["plain", "rslora", "patterns", "embedding and convolution", "saved modules", "pissa"],
)
def test_adapters_are_merged_as_peft_merges_them(base, tmp_path, options, layers):
    if options.get("init_lora_weights") == "pissa":
        expected = pissa(base(), tmp_path / "lora", **options)
    else:
        expected = adapted(base(), tmp_path / "lora", **options)
    assert assert_merged_as(expected, tmp_path / "lora", tmp_path / "base.safetensors") == layers
    assert assert_merged_as(expected, tmp_path, tmp_path / "base.safetensors") == layers  # the run around it


def pissa(net, folder, **options):
    """As peft opens a PiSSA adapter again: the base loses its leading part, the trained factors are added."""
    from peft import PeftModel

    start = Net()
    start.load_state_dict(net.state_dict())
    adapted(net, folder, **options)
    return PeftModel.from_pretrained(start, folder).merge_and_unload().state_dict()


def test_weights_stored_as_in_by_out(tmp_path):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    net = nn.ModuleDict({"c_attn": Conv1D(24, 16)})
    save_file(net.state_dict(), tmp_path / "base.safetensors")
    expected = adapted(net, tmp_path / "lora", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    assert expected["c_attn.weight"].shape == (16, 24)
    assert_merged_as(expected, tmp_path / "lora", tmp_path / "base.safetensors")


def test_an_exported_diffusers_lora_is_merged_as_diffusers_fuses_it(tmp_path):
    from tiny_models import build_sd3

    from imgrl.policies import LoraSpec, load_policy

    build_sd3().save_pretrained(tmp_path / "sd3")
    policy = load_policy(tmp_path / "sd3", lora=LoraSpec(rank=2, alpha=6.0))
    with torch.no_grad():
        for tensor in policy.weights.tensors("current").values():
            tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    policy.export(tmp_path / "run" / "lora")
    stock = build_sd3()
    stock.load_lora_weights(tmp_path / "run" / "lora", weight_name="pytorch_lora_weights.safetensors")
    stock.fuse_lora()
    stock.unload_lora_weights()
    expected = stock.transformer.state_dict()
    for place in ("run", "run/lora", "run/lora/pytorch_lora_weights.safetensors"):
        found = open_weights(tmp_path / place, open_weights(tmp_path / "sd3"))
        for name, matrix in found.items():
            torch.testing.assert_close(
                whole(matrix).flatten(), expected[name].flatten(), rtol=1e-5, atol=1e-6
            )
    with pytest.raises(ModelError, match="kohya's names"):
        open_weights(tmp_path / "run/lora/comfyui_lora.safetensors", open_weights(tmp_path / "sd3"))


def test_alpha_in_a_diffusers_lora_counts(tmp_path):
    base = torch.randn(8, 6)
    save_file({"x.to_q.weight": base}, tmp_path / "base.safetensors")
    a, b = torch.randn(2, 6), torch.randn(8, 2)
    factors = {"unet.x.to_q.lora.down.weight": a, "unet.x.to_q.lora.up.weight": b}
    save_file(factors | {"unet.x.to_q.alpha": torch.tensor(5.0)}, tmp_path / "lora.safetensors")
    found = open_weights(tmp_path / "lora.safetensors", open_weights(tmp_path / "base.safetensors"))
    torch.testing.assert_close(whole(found["x.to_q.weight"]), base + 2.5 * b @ a)


def test_an_adapter_of_a_bfloat16_base_is_added_in_float32(base, tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in base().state_dict().items()}
    save_file(state, tmp_path / "base.safetensors")
    adapted(base(), tmp_path / "lora", r=4, target_modules=["one"])
    stored = open_weights(tmp_path / "base.safetensors")
    matrix = open_weights(tmp_path / "lora", stored)["inner.one.weight"]
    assert matrix.dtype == torch.float32 and matrix.merged_onto is stored["inner.one.weight"]
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.inner.one.lora_{part}.weight"] for part in "AB")
    expected = state["inner.one.weight"].float() + 2 * b @ a  # peft's default alpha 8 over r 4
    torch.testing.assert_close(whole(matrix), expected)


def test_adapters_without_a_fitting_base_are_refused(base, tmp_path):
    adapted(base(), tmp_path / "lora", r=4, target_modules=["one"])
    with pytest.raises(ModelError, match="is a LoRA, which says nothing without its base"):
        open_weights(tmp_path / "lora")
    save_file({"other.weight": torch.ones(4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="changes inner.one, which BASE does not have"):
        open_weights(tmp_path / "lora", open_weights(tmp_path / "other.safetensors"))
    save_file({"inner.one.weight": torch.ones(4, 4)}, tmp_path / "small.safetensors")
    with pytest.raises(ModelError, match=r"by a matrix of 24x16, but BASE has 4x4"):
        open_weights(tmp_path / "lora", open_weights(tmp_path / "small.safetensors"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "DoRA adapter"),
        ({"peft_type": "LOHA"}, "LOHA adapter"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    ],
)
def test_adapters_of_other_kinds_are_refused(base, tmp_path, change, words):
    adapted(base(), tmp_path / "lora", r=4, target_modules=["one"])
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=words):
        open_weights(tmp_path / "lora", open_weights(tmp_path / "base.safetensors"))


def test_incomplete_adapters_are_refused(base, tmp_path):
    adapted(base(), tmp_path / "lora", r=4, target_modules=["one"])
    stored, file = (
        open_weights(tmp_path / "base.safetensors"),
        tmp_path / "lora" / "adapter_model.safetensors",
    )
    tensors = load_file(file)
    save_file({key: t for key, t in tensors.items() if "lora_A" in key}, file)
    with pytest.raises(ModelError, match="no complete LoRA"):
        open_weights(tmp_path / "lora", stored)
    file.unlink()
    with pytest.raises(ModelError, match="adapter_model.safetensors is missing"):
        open_weights(tmp_path / "lora", stored)


@pytest.mark.parametrize("given", ["lora", "lora/adapter_model.safetensors", "other.safetensors", "."])
def test_an_adapter_without_its_settings_is_refused(base, tmp_path, given):
    """Its scale is unknown: 1 would be a guess."""
    adapted(base(), tmp_path / "lora", r=4, target_modules=["one"])
    (tmp_path / "lora" / "adapter_config.json").unlink()
    save_file(load_file(tmp_path / "lora" / "adapter_model.safetensors"), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"scale is in its adapter_config.json, which is missing beside it"):
        open_weights(tmp_path / given, open_weights(tmp_path / "base.safetensors"))


@pytest.mark.parametrize("text", ['{"r": 4, "peft', "[4]", b"\xff\xfe{}"], ids=["cut", "list", "bytes"])
def test_damaged_settings_of_an_adapter_are_refused(text, base, tmp_path):
    base()
    stored = open_weights(tmp_path / "base.safetensors")
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged \(.*again$"):
        open_weights(folder, stored)
    if isinstance(text, str):
        file = tmp_path / LORA_FILE
        save_file({"one.lora_A.weight": torch.ones(1, 2)}, file, {"lora_adapter_metadata": text})
        with pytest.raises(ModelError, match=r"lora_adapter_metadata of .* is damaged \(.*again$"):
            open_weights(file, stored)
