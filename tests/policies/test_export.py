"""Exports are judged by stock diffusers, never by our own reader alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imgrl.errors import ExportError, ModelError
from imgrl.policies import LoraSpec
from imgrl.policies.export import COMFYUI_FILE, LORA_FILE, MANIFEST_FILE, load_lora
from imgrl.policies.flux import unpack
from imgrl.policies.stock import open_stock_pipeline


def stock_images(pipe: Any, policy: Any) -> torch.Tensor:
    out = pipe(
        "a red circle",
        generator=[torch.Generator().manual_seed(3)],
        output_type="latent",
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=3.5 if policy.family == "flux" else 1.0,
        max_sequence_length=policy.max_sequence_length,
    ).images
    return unpack(out, 8, 8) if policy.family == "flux" else out


def our_images(policy: Any, weights: str = "current") -> torch.Tensor:
    cond = policy.encode(["a red circle"])
    return policy.sample(cond, [3], steps=3, weights=weights, height=64, width=64)


@pytest.mark.parametrize("targets", ["default", "all-linear"])
def test_stock_diffusers_samples_the_same_with_the_exported_lora(
    load: Any, disturb: Any, folders: dict[str, Path], family: str, targets: Any, tmp_path: Path
) -> None:
    policy = load(family, lora=LoraSpec(rank=4, alpha=6, targets=targets))
    disturb(policy)
    manifest = policy.export(tmp_path / "lora")
    assert manifest.velocity_error is not None and manifest.velocity_error < 1e-5
    assert manifest.weight_error is not None and manifest.weight_error < 1e-6
    assert manifest.velocity_change is not None and manifest.velocity_change > 0.05
    pipe = open_stock_pipeline(folders[family])
    before = stock_images(pipe, policy)
    pipe.load_lora_weights(tmp_path / "lora")
    assert (before - our_images(policy)).abs().max() > 0.01  # the LoRA matters
    torch.testing.assert_close(stock_images(pipe, policy), our_images(policy), rtol=0, atol=2e-5)


def test_pissa_is_exported_as_a_plain_lora_of_twice_the_rank_on_the_stock_model(
    load: Any, disturb: Any, folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    policy = load(family, lora=LoraSpec(rank=4, alpha=6, init="pissa"))
    disturb(policy)
    manifest = policy.export(tmp_path / "lora")
    assert (manifest.rank, manifest.alpha) == (8, 12) and manifest.velocity_error is not None
    assert manifest.velocity_error < 1e-5 and (manifest.velocity_change or 0) > 0.05
    pipe = open_stock_pipeline(folders[family])
    pipe.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(stock_images(pipe, policy), our_images(policy), rtol=0, atol=5e-5)
    reopened = load(family, lora=LoraSpec(rank=8, alpha=12))
    load_lora(reopened, tmp_path / "lora")
    torch.testing.assert_close(our_images(reopened), our_images(policy), rtol=0, atol=5e-5)
    with pytest.raises(ModelError, match="no start for init='pissa'"):
        load_lora(policy, tmp_path / "lora")


def test_manifest_is_written_beside_the_files(load: Any, tmp_path: Path) -> None:
    policy = load("sd3", names=["ema"])
    manifest = policy.export(tmp_path / "out", weights="ema", verify=False)
    stored = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert stored == json.loads(json.dumps(dataclasses.asdict(manifest)))
    assert stored["weights"] == "ema" and stored["rank"] == 4 and stored["velocity_error"] is None
    assert {f.name for f in (tmp_path / "out").iterdir()} == {LORA_FILE, COMFYUI_FILE, MANIFEST_FILE}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_second_export_replaces_the_first_and_other_folders_are_safe(
    load: Any, disturb: Any, tmp_path: Path
) -> None:
    policy = load("sd3")
    policy.export(tmp_path / "out", verify=False)
    before = load_file(tmp_path / "out" / LORA_FILE)
    disturb(policy)
    policy.export(tmp_path / "out", verify=False)
    after = load_file(tmp_path / "out" / LORA_FILE)
    assert any(not torch.equal(after[k], before[k]) for k in before)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ExportError, match="not an export"):
        policy.export(tmp_path / "mine")


def test_an_export_that_does_not_load_or_differs_is_refused_and_not_kept(
    load: Any, disturb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load("sd3")
    disturb(policy)

    def broken(change: Any) -> None:
        def save(tensors: dict[str, torch.Tensor], path: Path, metadata: Any) -> None:
            save_file(change(tensors), path, metadata)

        monkeypatch.setattr("safetensors.torch.save_file", save)

    broken(lambda tensors: {k.replace("transformer.", "other.", 1): t for k, t in tensors.items()})
    with pytest.raises(ExportError, match="loaded 0 of 15|cannot load"):
        policy.export(tmp_path / "out")
    broken(lambda tensors: {k: t / 2 if ".lora_B." in k else t for k, t in tensors.items()})
    with pytest.raises(ExportError, match="LoRA factors differ"):
        policy.export(tmp_path / "out")
    broken(lambda tensors: {k: t for k, t in tensors.items() if "blocks.0." not in k})
    with pytest.raises(ExportError, match="loaded 7 of 15"):
        policy.export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def spied(policy: Any, monkeypatch: pytest.MonkeyPatch, change: Any = lambda v: v) -> list[str]:
    """What the check does, in order; ``change`` is applied to the fresh network's velocity."""
    events: list[str] = []
    fresh: list[Any] = []
    predict, move = policy.predict, policy.transformer.to

    def spying_predict(transformer: Any, *inputs: Any) -> torch.Tensor:
        ours = transformer is policy.transformer
        events.append("ours" if ours else "fresh")
        fresh.extend([] if ours else [transformer])
        return predict(transformer, *inputs) if ours else change(predict(transformer, *inputs))

    def spying_move(device: Any) -> Any:
        back = device is policy.device
        if back:
            assert all(t.is_meta for t in fresh[0].parameters()), "the fresh network is still there"
        events.append("back" if back else f"to {device}")
        return move(device)

    monkeypatch.setattr(policy, "predict", spying_predict)
    monkeypatch.setattr(policy.transformer, "to", spying_move)
    return events


ALONE = ["ours", "ours", "to cpu", "fresh", "back"]  # trained and frozen velocities first


def test_the_device_never_holds_the_trained_and_the_fresh_network(
    load: Any, disturb: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(family)
    disturb(policy)
    events = spied(policy, monkeypatch)
    assert policy.export(tmp_path / "out").unverified is None
    assert events == ALONE


def test_a_check_that_fails_puts_the_trained_network_back(
    load: Any, disturb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load("sd3")
    disturb(policy)
    events = spied(policy, monkeypatch, lambda velocity: velocity * 1.5)
    with pytest.raises(ExportError, match="velocities differ .* by 0.5"):
        policy.export(tmp_path / "out")
    assert events == ALONE and list(tmp_path.iterdir()) == []


def test_a_check_without_the_memory_for_it_keeps_the_export_and_says_so(
    load: Any, disturb: Any, example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load("sd3")
    disturb(policy)
    x, sigma, cond = example(policy)
    before = policy.velocity(x, sigma, cond).detach()

    def full(_: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 24 GiB.\nDetails")

    events = spied(policy, monkeypatch, full)
    manifest = policy.export(tmp_path / "out")
    assert events == ALONE
    stored = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert stored["velocity_error"] is None and stored["unverified"] == manifest.unverified
    assert "Tried to allocate 24 GiB.); to have it checked, export the run" in stored["unverified"]
    assert stored["layers"] == 15 and stored["weight_error"] < 1e-6  # what needs no device is checked
    assert len(load_file(tmp_path / "out" / LORA_FILE)) == 30
    assert torch.equal(policy.velocity(x, sigma, cond).detach(), before)


def test_exported_lora_loads_back_and_another_rank_is_one_clear_error(
    load: Any, disturb: Any, example: Any, family: str, tmp_path: Path
) -> None:
    policy, fresh = load(family), load(family, names=["old"])
    disturb(policy)
    policy.export(tmp_path / "out", verify=False)
    load_lora(fresh, tmp_path / "out", name="old")
    x, sigma, cond = example(policy)
    theirs = fresh.velocity(x, sigma, cond, weights="old")
    torch.testing.assert_close(theirs, policy.velocity(x, sigma, cond).detach(), rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match="use the base model and LoRA rank"):
        load_lora(load(family, lora=LoraSpec(rank=2, alpha=2)), tmp_path / "out")
    with pytest.raises(ModelError, match="does not exist"):
        load_lora(policy, tmp_path / "nowhere.safetensors")
    with pytest.raises(ModelError, match="train='lora'"):
        load_lora(load(family, train="none"), tmp_path / "out")


def test_full_fine_tune_is_a_pipeline_that_stock_diffusers_opens(
    load: Any, disturb: Any, family: str, tmp_path: Path
) -> None:
    policy = load(family, train="full", names=["old", "frozen"])
    disturb(policy, 0.02)
    manifest = policy.export(tmp_path / "out")
    assert manifest.kind == "full"
    assert manifest.velocity_error is not None and manifest.velocity_error < 1e-6
    assert manifest.velocity_change is not None and manifest.velocity_change > 0.01
    stock = stock_images(open_stock_pipeline(tmp_path / "out"), policy)
    torch.testing.assert_close(stock, our_images(policy), rtol=0, atol=1e-6)  # rounding by memory alignment
    policy.export(tmp_path / "old", weights="old")
    before = stock_images(open_stock_pipeline(tmp_path / "old"), policy)
    torch.testing.assert_close(before, our_images(policy, "frozen"), rtol=0, atol=1e-6)
    assert (before - stock).abs().max() > 1e-3


def test_half_precision_exports_within_its_rounding(
    load: Any, disturb: Any, family: str, tmp_path: Path
) -> None:
    policy = load(family, dtype="bf16")
    disturb(policy)
    manifest = policy.export(tmp_path / "out")
    assert manifest.dtype == "bfloat16" and manifest.velocity_error is not None
    assert manifest.velocity_error < 0.2 * (manifest.velocity_change or 0)
    assert {t.dtype for t in load_file(tmp_path / "out" / LORA_FILE).values()} == {torch.float32}


def test_nothing_to_export_is_said(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to export"):
        load("sd3", train="none").export(tmp_path / "out")
    with pytest.raises(ExportError, match="hold no LoRA"):
        load("sd3").export(tmp_path / "out", weights="frozen")
