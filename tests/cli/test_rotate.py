"""`imgrl rotate` writes a stock model that computes the same with other weights."""

import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
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
