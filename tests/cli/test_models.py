"""`--lora` and `--model` out of a run: sampled under the conditions that the run trained with."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import build_flux

from imgrl.cli.models import load_for_sampling, sampling_settings
from imgrl.policies import LoraSpec, load_policy
from imgrl.recipe import Model, Recipe, dump

SPEC = LoraSpec(rank=2, alpha=4.0)


def write_run(folder, policy, model):
    """What `imgrl train` leaves of a run that matters for sampling."""
    with torch.no_grad():
        for tensor in policy.weights.tensors("current").values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    policy.export(folder / "lora")
    (folder / "config.yaml").write_text(dump(Recipe(model=model)))
    return policy


@pytest.fixture
def trained(sd3_folder, tmp_path):
    """A run without zero tokens, 96 pixels wide: its policy."""
    policy = load_policy(sd3_folder, lora=SPEC, max_sequence_length=0)
    model = Model(path=str(sd3_folder), lora=SPEC, max_sequence_length=0, width=96)
    return write_run(tmp_path / "run", policy, model)


def velocity(policy):
    return policy.velocity(policy.initial_noise([0]), 0.5, policy.encode(["a dog"])).detach()


@pytest.mark.parametrize("place", ["run", "run/lora", "run/lora/pytorch_lora_weights.safetensors"])
def test_a_lora_is_sampled_as_its_run_trained_it(trained, tmp_path, place):
    lora = tmp_path / place
    settings = sampling_settings(None, lora)
    assert (settings.width, settings.height) == (96, None)
    same = load_for_sampling(settings, lora, device="cpu")
    other = load_for_sampling(sampling_settings(None, lora, max_sequence_length=256), lora, device="cpu")
    torch.testing.assert_close(velocity(same), velocity(trained), rtol=1e-4, atol=1e-5)
    assert (velocity(other) - velocity(trained)).abs().max() > 1e-2  # what was measured before, silently


def test_sample_draws_what_the_trained_policy_draws(imgrl, trained, tmp_path):
    result = imgrl("sample", "a cat", "--lora", "run", "--seeds", 3, "--steps", 2, "--device", "cpu")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout == "samples.png\n" and "imgrl:" not in result.stderr
    latents = trained.sample(trained.encode(["a cat"]), [3], steps=2, weights="current", width=96)
    expected = (trained.decode(latents)[0].permute(1, 2, 0) * 255).round().numpy().astype(int)
    drawn = np.asarray(Image.open(tmp_path / "samples.png"), dtype=int)
    assert drawn.shape == (64, 96, 3)
    assert np.abs(drawn - expected).max() <= 1  # one grey level of rounding


def test_options_win_over_the_run(imgrl, trained, tmp_path):
    result = imgrl("sample", "a cat", "--lora", "run", "--seeds", 3, "--steps", 1, "--width", 64)
    assert result.exit_code == 0, (result.output, result.exception)
    assert Image.open(tmp_path / "samples.png").size == (64, 64)
    settings = sampling_settings(None, tmp_path / "run", max_sequence_length=5, dtype="bf16", height=32)
    assert (settings.max_sequence_length, settings.dtype, settings.height) == (5, "bf16", 32)


def test_eval_takes_them_too(refused, trained, tmp_path):
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(saved.read_text().replace("width: 96", "width: 40"))
    said = refused("eval", "shapes", "--lora", "run", "--limit", 1, "--steps", 1, "--device", "cpu")
    assert "multiples of 16 pixels for this model, got 64 x 40" in said


def test_another_model_than_the_runs_is_told(sd3_folder, trained, tmp_path, capsys):
    sampling_settings(str(sd3_folder / "."), tmp_path / "run")
    assert capsys.readouterr().err == ""
    settings = sampling_settings("tiny-sd3", tmp_path / "run")
    assert settings.path == "tiny-sd3" and settings.max_sequence_length == 0
    told = capsys.readouterr().err
    assert f"was trained on {sd3_folder}; it is used on tiny-sd3, as --model says" in told


def test_an_export_outside_its_run_is_told(trained, sd3_folder, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tmp_path / "run" / "lora", tmp_path / "elsewhere" / "lora")
    settings = sampling_settings(str(sd3_folder), tmp_path / "elsewhere" / "lora")
    assert settings == Model(path=str(sd3_folder))
    assert "lies outside the run that wrote it, so the model's usual text length" in capsys.readouterr().err


def test_the_config_of_another_trainer_is_none_of_ours(trained, tmp_path, capsys):
    (tmp_path / "run" / "lora" / "export.json").unlink()
    (tmp_path / "run" / "config.yaml").write_text("job: extension\n")
    assert sampling_settings(None, tmp_path / "run") == Model()
    assert capsys.readouterr().err == ""


def test_a_damaged_config_is_refused(refused, trained, tmp_path):
    (tmp_path / "run" / "config.yaml").write_text("modle: {}\n")
    said = refused("sample", "a cat", "--lora", "run")
    assert "run/config.yaml, which is no recipe of this version: " in said and "did you mean 'model'?" in said
    assert "move the exported folder out of its run" in said


def test_a_full_model_out_of_a_run(refused, sd3_folder, tmp_path):
    policy = load_policy(sd3_folder, train="full", max_sequence_length=0)
    model = Model(path=str(sd3_folder), train="full", max_sequence_length=0)
    write_run(tmp_path / "run", policy, model)
    (tmp_path / "run" / "lora").rename(tmp_path / "run" / "model")  # as runs of full fine-tuning name it
    settings = sampling_settings(str(tmp_path / "run" / "model"), None)
    assert settings.path == str(tmp_path / "run" / "model")
    loaded = load_for_sampling(settings, None, device="cpu")
    torch.testing.assert_close(velocity(loaded), velocity(policy), rtol=1e-4, atol=1e-5)
    said = refused("sample", "a cat", "--lora", "run")
    assert "run/model is a whole model and no LoRA; give it as --model run/model" in said


def test_distilled_guidance_comes_from_the_run(tmp_path):
    build_flux(guidance_embeds=True).save_pretrained(tmp_path / "flux")
    policy = load_policy(tmp_path / "flux", lora=SPEC, distilled_guidance=2.0)
    write_run(tmp_path / "run", policy, Model(path=str(tmp_path / "flux"), lora=SPEC, distilled_guidance=2.0))
    for given, expected in ((None, 2.0), (7.0, 7.0)):
        settings = sampling_settings(None, tmp_path / "run", distilled_guidance=given)
        loaded = load_for_sampling(settings, tmp_path / "run", device="cpu")
        assert loaded.distilled_guidance == expected


def test_without_a_run_it_is_the_bundled_model(tmp_path, monkeypatch):
    assert sampling_settings(None, None) == Model()
    (tmp_path / "export").mkdir()  # standing inside an export means nothing
    (tmp_path / "export" / "export.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("no: recipe\n")
    monkeypatch.chdir(tmp_path / "export")
    assert sampling_settings(None, None) == Model()
