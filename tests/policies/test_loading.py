import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgrl.errors import ConfigError, ModelError
from imgrl.policies import inspect_folder, load_policy
from imgrl.policies.loading import compile_blocks

ASSET = Path(__file__).parents[2] / "assets" / "tiny-flux"


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["sd3"], tmp_path / "sd3")


def edit(folder: Path, **entries: Any) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **entries}))


def test_families_are_recognised(folders: dict[str, Path]) -> None:
    assert inspect_folder(folders["sd3"]).family == "sd3"
    assert inspect_folder(folders["flux"]).family == "flux"


def test_the_bundled_flux_is_a_stock_pipeline_and_small() -> None:
    from diffusers import FluxPipeline

    assert sum(f.stat().st_size for f in ASSET.rglob("*") if f.is_file()) < 3_000_000
    pipe = FluxPipeline.from_pretrained(ASSET)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a", num_inference_steps=1, height=32, width=32, output_type="pt").images.shape == (
        1,
        3,
        32,
        32,
    )
    assert load_policy(ASSET).family == "flux"


def test_foreign_and_broken_folders_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_policy(tmp_path / "nowhere" / "deeper")
    with pytest.raises(ModelError, match="is a file, not a folder"):
        load_policy(copied / "model_index.json")
    with pytest.raises(ModelError, match="no model_index.json"):
        load_policy(tmp_path)
    edit(copied, _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ModelError, match="holds a StableDiffusionXLPipeline, but imgrl trains"):
        load_policy(copied)
    (copied / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_policy(copied)


def test_an_unknown_hub_name_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match="'nobody/nothing' is no folder here and could not be downloaded"
    ) as error:
        load_policy("nobody/nothing")
    assert "\n" not in str(error.value)


def test_another_scheduler_or_no_vae_is_refused(copied: Path) -> None:
    edit(copied, scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(ModelError, match="uses DDIMScheduler"):
        load_policy(copied)
    edit(copied, vae=[None, None])
    with pytest.raises(ModelError, match="names no vae"):
        load_policy(copied)


@pytest.mark.parametrize(
    "lost",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder_2/model.safetensors",
    ],
)
def test_missing_files_are_found_before_weights_load(
    copied: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import SD3Transformer2DModel

    monkeypatch.setattr(
        SD3Transformer2DModel, "from_pretrained", lambda *_a, **_k: pytest.fail("weights were read")
    )
    (copied / lost).unlink()
    with pytest.raises(ModelError, match=f"incomplete: {lost.split('/')[0]}/"):
        load_policy(copied)


def test_a_missing_shard_is_found(copied: Path) -> None:
    shards = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "second.safetensors"}}
    name = "diffusion_pytorch_model.safetensors.index.json"
    (copied / "transformer" / name).write_text(json.dumps(shards))
    with pytest.raises(ModelError, match="transformer/second.safetensors is missing"):
        load_policy(copied)


def test_wrong_options_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="train must be"):
        load_policy(folders["sd3"], train="some")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="dtype must be"):
        load_policy(folders["sd3"], dtype="int8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="vae_dtype must be"):
        load_policy(folders["sd3"], vae_dtype="fp16")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="distilled_guidance only fits"):
        load_policy(folders["sd3"], distilled_guidance=3.0)


@pytest.mark.parametrize("name", ["recompile_limit", "cache_size_limit"])
def test_compiling_raises_the_limit_under_either_of_its_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.4 and 2.5 know only the second; a higher limit of the user's stays."""
    import torch._dynamo as dynamo

    for given, expected in ((8, 64), (100, 100)):
        config, calls = SimpleNamespace(**{name: given}), []
        monkeypatch.setattr(dynamo, "config", config)
        block = SimpleNamespace(compile=lambda calls=calls, **options: calls.append(options))
        compile_blocks(SimpleNamespace(transformer_blocks=[block, block]), backend="eager")
        assert vars(config) == {name: expected} and calls == [{"backend": "eager"}] * 2


def test_importing_policies_stays_light() -> None:
    import subprocess
    import sys

    heavy = "('diffusers', 'transformers', 'peft')"
    code = f"import imgrl.policies, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
