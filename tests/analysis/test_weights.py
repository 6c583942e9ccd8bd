import json

import pytest
import torch
from safetensors.torch import save_file

from imgrl.analysis.figures import Settings
from imgrl.analysis.measure import measure
from imgrl.analysis.rotated import beside_rotated
from imgrl.analysis.weights import blocks, open_weights
from imgrl.errors import ModelError


def whole(matrix):
    return torch.cat([matrix.rows(a, b) for a, b in blocks(matrix.shape, 64)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama in one file and in shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "shards", max_shard_size="8KB")
    return model, folder


@pytest.mark.parametrize("form", ["one", "shards"])
def test_a_transformers_folder(llama, form):
    model, folder = llama
    if form == "shards":
        assert len(list((folder / form).glob("*.safetensors"))) > 2
    found, state = open_weights(folder / form), model.state_dict()
    assert found.keys() == state.keys()
    for name, matrix in found.items():
        assert matrix.dtype == torch.bfloat16 and matrix.original == tuple(state[name].shape)
        assert torch.equal(whole(matrix).flatten(), state[name].flatten())


def test_a_diffusers_pipeline_and_its_transformer():
    from imgrl.resources import asset

    pipeline, part = (open_weights(asset("tiny-sd3") / sub) for sub in ("", "transformer"))
    assert pipeline.keys() == part.keys()
    assert any("attn.to_q" in name for name in pipeline) and not any(
        "text_model" in name for name in pipeline
    )


def test_kernels_are_flattened_and_stacks_taken_apart(tmp_path):
    tensors = {
        "conv": torch.randn(6, 3, 2, 2),
        "conv1d": torch.randn(6, 3, 5),
        "experts": torch.randn(3, 8, 32),
        "bias": torch.randn(7),
        "scale": torch.tensor(2.0),
        "position": torch.randn(1, 4, 32),
        "ids": torch.arange(4),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = open_weights(tmp_path / "x.safetensors")
    assert found["conv"].shape == (6, 12) and torch.equal(whole(found["conv"]), tensors["conv"].flatten(1))
    assert found["conv1d"].shape == (6, 15)
    for i in range(3):
        assert torch.equal(whole(found[f"experts[{i}]"]), tensors["experts"][i])
    assert found["bias"].shape == (1, 7) and found["bias"].side == 1
    assert found["scale"].shape == (1, 1) and found["position"].side == 1
    assert found["ids"].dtype == torch.int8


def test_a_truncated_file_is_named(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(64, 64)}, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"x.safetensors is truncated or no safetensors file"):
        open_weights(file)
    renamed = file.rename(tmp_path / "x.bin")
    with pytest.raises(
        ModelError, match="x.bin is no safetensors file, and only those are read: .* save_pretrained"
    ):
        open_weights(renamed)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"config.json holds settings and no weights: give .*, {tmp_path}$"):
        open_weights(tmp_path / "config.json")
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="truncated"):
        open_weights(file)


def test_broken_folders_are_refused(llama, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        open_weights(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="holds no weights"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled weights only"):
        open_weights(tmp_path)
    for name in "ab":
        save_file({name: torch.ones(2, 2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match="2 safetensors files without an index"):
        open_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(ModelError, match="not an index of shards"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "c.safetensors"}}))
    with pytest.raises(ModelError, match="c.safetensors is missing"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "c": "b.safetensors"}}))
    with pytest.raises(ModelError, match="lacks 1 tensor that its index names, the first is c"):
        open_weights(tmp_path)


@pytest.mark.parametrize("part", ["model", "lora"])
def test_a_run_folder_is_told_where_its_weights_are(tmp_path, part):
    (tmp_path / part).mkdir()
    with pytest.raises(
        ModelError, match=f"itself holds no weights, as a run folder does not: give {tmp_path / part}$"
    ):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "runs", "options"),
    [
        (torch.bfloat16, 1, Settings(k=(16,), control=False)),
        (torch.float32, 1, Settings(k=(16,), control=False)),
        (torch.bfloat16, 1, Settings()),  # the command's own
        (torch.bfloat16, 2, Settings()),
    ],
)
def test_memory_stays_far_below_two_matrices(tmp_path, dtype, runs, options):
    """Peak of torch's allocations over a whole measurement, against the matrix in its stored precision."""
    from torch.profiler import ProfilerActivity, profile

    before = torch.randn(12_288, 1024).to(dtype)
    for i in range(runs + 1):
        save_file({"w": before * (1 + i / 100)}, tmp_path / f"{i}.safetensors")
    size = before.numel() * before.element_size()
    del before
    base, *tuned = (open_weights(tmp_path / f"{i}.safetensors")["w"] for i in range(runs + 1))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        measure(base, tuned, options)
        beside_rotated(base, tuned, base, tuned[0])
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    assert size / 100 < peak < 2 * size
