"""`imgrl rotate` writes a stock model that computes the same with other weights."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from tiny_models import build_sd3, sd3_inputs
from transformers import AutoModelForCausalLM, AutoTokenizer

from imgrl.resources import asset


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd3"
    build_sd3().save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_language_model(imgrl, tmp_path):
    result = imgrl("rotate", "tiny-lm", "rotated")
    assert result.exit_code == 0
    base = AutoModelForCausalLM.from_pretrained(asset("tiny-lm"))
    turned = AutoModelForCausalLM.from_pretrained(tmp_path / "rotated")
    ids = AutoTokenizer.from_pretrained(tmp_path / "rotated")(
        "add 347+85:7+5+0=12", return_tensors="pt"
    ).input_ids
    torch.testing.assert_close(turned(ids).logits, base(ids).logits, rtol=0, atol=1e-4)
    moved = {
        name for name, tensor in turned.state_dict().items() if not tensor.equal(base.state_dict()[name])
    }
    assert moved == {
        f"model.layers.{i}.self_attn.{part}.weight" for i in range(4) for part in ("v_proj", "o_proj")
    }
    assert f"{len(moved)} weights rotated" in result.stdout


def trained(state, file, seed):
    """Noise in place of training, on stored weights: nothing is learnt."""
    generator = torch.Generator().manual_seed(seed)
    after = {
        n: (t.float() + 1e-4 * torch.randn(t.shape, generator=generator)).bfloat16() for n, t in state.items()
    }
    save_file(after, file)
    return {name: tensor != after[name] for name, tensor in state.items()}


def test_runs_from_both_are_compared(imgrl, tmp_path):
    """Jaccard indices from the files themselves; by chance where rotated, and elsewhere far above."""
    pytest.importorskip("matplotlib")
    said = imgrl("rotate", "tiny-lm", "rotated").stdout
    assert "imgrl diagnose tiny-lm TUNED --rotated rotated TUNED2" in said
    masks = []
    for seed, folder in enumerate((asset("tiny-lm"), tmp_path / "rotated")):
        state = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
        save_file(state, tmp_path / f"base{seed}.safetensors")
        masks.append(trained(state, tmp_path / f"run{seed}.safetensors", seed))
    files = [f"{name}.safetensors" for name in ("base0", "run0", "base1", "run1")]
    options = ("--no-control", "--json", "o.json", "--html", "o.html")
    result = imgrl("diagnose", *files[:2], "--rotated", *files[2:], *options)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o.json").read_text())
    found = {layer["name"]: layer["rotated"] for layer in report["layers"] if len(layer["shape"]) > 1}
    edited = {f"model.layers.{i}.self_attn.{part}.weight" for i in range(4) for part in ("v_proj", "o_proj")}
    assert {name for name, own in found.items() if own["edited"]} == edited and len(found) == 29
    for name, own in found.items():
        one, other = (mask[name] for mask in masks)
        (run,) = own["runs"]
        assert run["jaccard"] == pytest.approx(int((one & other).sum()) / int((one | other).sum()))
        assert run["changed_share"] == pytest.approx(float(one.double().mean()))
        assert (run["jaccard"] < run["bernoulli_null"] + 0.03) is (name in edited), name
        assert run["matched_null"] == pytest.approx(run["jaccard"], abs=0.02), name
    groups = {row["matrices"]: row["count"] for row in report["rotated"]["agreement"]}
    assert groups == {"edited": 8, "same": 21, "all": 29}
    assert "base0.safetensors → run0.safetensors beside base1.safetensors → run1.safetensors" in result.stdout
    assert "all 21" in result.stdout and "trained from the rotated base1" in (tmp_path / "o.html").read_text()


@torch.no_grad()
def test_a_pipeline(imgrl, pipeline, tmp_path):
    assert imgrl("rotate", str(pipeline), "rotated", "--kind", "hadamard").exit_code == 0
    one, other = (
        StableDiffusion3Pipeline.from_pretrained(f, text_encoder_3=None, tokenizer_3=None)
        for f in (pipeline, tmp_path / "rotated")
    )
    inputs = sd3_inputs()
    found = [pipe.transformer(**inputs).sample for pipe in (one, other)]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    weights = [pipe.transformer.state_dict() for pipe in (one, other)]
    assert any(not weights[1][name].equal(tensor) for name, tensor in weights[0].items())
    assert all(a.equal(b) for a, b in zip(one.vae.parameters(), other.vae.parameters(), strict=True))


def test_other_shards_of_the_model_do_not_stay(imgrl, tmp_path):
    shutil.copytree(asset("tiny-lm"), tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    base.save_pretrained(tmp_path / "model", max_shard_size="2MB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert imgrl("rotate", "model", "rotated").exit_code == 0
    assert [file.name for file in (tmp_path / "rotated").glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere", "rotated"), "nowhere is neither a model's folder on this disk nor a bundled model"),
        (("tiny-lm", "full"), "full already holds something; name a new or an empty folder"),
        (("empty", "rotated"), "has no config.json that can be read"),
    ],
)
def test_what_cannot_be_rotated_is_refused(imgrl, tmp_path, arguments, sentence):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    result = imgrl("rotate", *arguments)
    assert result.exit_code == 2 and sentence in result.stderr
    assert not (tmp_path / "rotated").exists()
