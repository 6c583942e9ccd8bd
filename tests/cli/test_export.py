"""`imgrl export` of a checkpoint, against the weights that were put into it."""

import json

import pytest
import torch

from imgrl.recipe import Evaluation, LoraSpec, Model, Recipe, dump

SPEC = LoraSpec(rank=2, alpha=4.0)


@pytest.fixture
def trained(sd3_folder, tmp_path):
    """A run with two checkpoints whose weights are known: the policy that the last one holds."""
    from imgrl.policies import load_policy

    policy = load_policy(sd3_folder, lora=SPEC, names=("sampling",))
    for number in (1, 10):
        with torch.no_grad():
            for tensor in policy.weights.tensors("current").values():
                tensor.normal_(generator=torch.Generator().manual_seed(number))
        save(policy, tmp_path / "run", number)
    return policy


def save(policy, run, number, **changes):
    from imgrl.training.checkpoint import pack, write_checkpoint

    config = dump(Recipe(model=Model(path=str(policy.folder), lora=SPEC), **changes))
    named = {name: policy.weights.state_dict(name) for name in ("current", "sampling")}
    write_checkpoint(run, number, tensors={"weights": pack(named)}, state={}, config=config)


def velocity(policy, weights="current"):
    cond, x = policy.encode(["a dog"]), policy.initial_noise([0])
    return policy.velocity(x, 0.5, cond, weights=weights).detach()


def exported(sd3_folder, folder):
    from imgrl.cli.models import load_for_sampling, sampling_settings

    return velocity(load_for_sampling(sampling_settings(str(sd3_folder), folder), folder, device="cpu"))


def test_the_newest_checkpoint_is_exported(imgrl, trained, sd3_folder, tmp_path):
    result = imgrl("export", "run", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["folder"] == "run/export" and report["velocity_error"] < 1e-4
    torch.testing.assert_close(
        exported(sd3_folder, tmp_path / "run/export"), velocity(trained), rtol=1e-4, atol=1e-4
    )


def test_other_weights_of_a_named_checkpoint(imgrl, trained, sd3_folder, tmp_path):
    result = imgrl(
        "export", "run/checkpoints/step-10", "--weights", "sampling", "-o", "out", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert "stock diffusers agrees to" in result.stdout
    base = velocity(trained, "frozen")  # the copy was made before training: B is zero
    torch.testing.assert_close(exported(sd3_folder, tmp_path / "out"), base, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("option", "written"), [([], "sampling"), (["--weights", "current"], "current")])
def test_weights_are_those_that_the_run_evaluates(imgrl, trained, sd3_folder, tmp_path, option, written):
    """As the trainer exports them; a manifest names what lies beside it."""
    save(trained, tmp_path / "run", 11, evaluation=Evaluation(weights="sampling"))
    result = imgrl("export", "run", *option, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["weights"] == written
    expected = velocity(trained, "frozen" if written == "sampling" else "current")
    torch.testing.assert_close(exported(sd3_folder, tmp_path / "run/export"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.25, 2.0])
def test_strength_scales_what_was_learned(imgrl, trained, tmp_path, strength):
    from safetensors.torch import load_file

    for folder, option in (("whole", []), ("part", ["--strength", str(strength)])):
        assert imgrl("export", "run", "-o", folder, "--device", "cpu", *option).exit_code == 0
    whole, part = (
        load_file(tmp_path / folder / "pytorch_lora_weights.safetensors") for folder in ("whole", "part")
    )
    for key, tensor in whole.items():
        torch.testing.assert_close(part[key], tensor * strength if ".lora_B." in key else tensor)


def test_an_export_that_memory_did_not_suffice_to_check_is_written(imgrl, trained, tmp_path, monkeypatch):
    from imgrl.policies import Policy

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Policy, "predict", full)
    result = imgrl("export", "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "Memory ran out before a fresh pipeline could be compared" in result.stdout
    assert (tmp_path / "run/export/pytorch_lora_weights.safetensors").is_file()


def test_refused(refused, trained, tmp_path):
    assert "neither a run folder with a checkpoint nor a checkpoint" in refused("export", "nowhere")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    assert "neither a run folder" in refused("export", "new")
    assert "has no weights 'ema'" in refused("export", "run", "--weights", "ema", "--device", "cpu")
    weights = tmp_path / "run/checkpoints/step-10/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "missing or was changed" in refused("export", "run", "--device", "cpu")
