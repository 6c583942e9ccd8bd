from pathlib import Path
from typing import Any

import pytest
import torch

from imgrl.errors import ConfigError
from imgrl.policies.embeddings import encoder_revision
from imgrl.policies.stock import open_stock_pipeline


def test_embeddings_are_the_stock_pipelines(load: Any, folders: dict[str, Path], family: str) -> None:
    ours = load(family).encode(["a red circle"]).tensors
    pipe, length = open_stock_pipeline(folders[family]), {"sd3": 0, "flux": 8}[family]
    with torch.no_grad():
        if family == "sd3":
            embeds, _, pooled, _ = pipe.encode_prompt("a red circle", None, None, max_sequence_length=length)
        else:
            embeds, pooled, _ = pipe.encode_prompt("a red circle", max_sequence_length=length)
    assert torch.equal(ours["prompt_embeds"], embeds)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)


def test_a_row_does_not_depend_on_its_neighbours(load: Any, family: str) -> None:
    policy = load(family)
    batch = policy.encode(["a", "a much longer prompt", "a"]).tensors
    alone = load(family).encode(["a"]).tensors
    for name, tensor in batch.items():
        assert torch.equal(tensor[:1], alone[name]) and torch.equal(tensor[0], tensor[2])


def test_encoders_load_late_and_can_be_dropped_and_come_back(load: Any, example: Any) -> None:
    policy = load("sd3")
    assert policy._encoders is None
    first = policy.encode(["a"]).tensors
    policy.drop_encoders()
    assert policy._encoders is None
    x, sigma, cond = policy.initial_noise([0], 64, 64), 0.5, policy.encode(["a"])
    policy.velocity(x, sigma, cond, guidance=2.0)  # the empty prompt was kept
    assert policy._encoders is None
    unseen = policy.encode(["unseen"]).tensors
    assert policy._encoders is not None
    assert torch.equal(unseen["prompt_embeds"], load("sd3").encode(["unseen"]).tensors["prompt_embeds"])
    assert torch.equal(policy.encode(["a"]).tensors["prompt_embeds"], first["prompt_embeds"])


def test_disk_cache_serves_without_encoders_and_survives_corruption(load: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = load("sd3", embedding_folder=folder)
    expected = first.encode(["a", "b"]).tensors["prompt_embeds"]
    files = sorted(folder.iterdir())
    assert len(files) == 2 and all(f.suffix == ".safetensors" for f in files)
    second = load("sd3", embedding_folder=folder)
    assert torch.equal(second.encode(["a", "b"]).tensors["prompt_embeds"], expected)
    assert second._encoders is None
    files[0].write_bytes(files[0].read_bytes()[:50])
    third = load("sd3", embedding_folder=folder)
    with pytest.warns(UserWarning, match="corrupted"):
        assert torch.equal(third.encode(["a", "b"]).tensors["prompt_embeds"], expected)
    assert torch.equal(
        load("sd3", embedding_folder=folder).encode(["a", "b"]).tensors["prompt_embeds"], expected
    )


def test_the_key_changes_with_dtype_length_and_encoder(load: Any, tmp_path: Path) -> None:
    base = load("flux", embedding_folder=tmp_path)
    low, longer = (
        load("flux", embedding_folder=tmp_path, dtype="bf16"),
        load("flux", embedding_folder=tmp_path),
    )
    longer.max_sequence_length = 9
    paths = {p._embeddings.path("a") for p in (base, low, longer)}
    assert len(paths) == 3 and base._embeddings.path("a") != base._embeddings.path("b")


def test_the_revision_sees_one_changed_byte(folders: dict[str, Path], tmp_path: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.write_bytes(b"\0" * 1000)
    before = encoder_revision(tmp_path)
    assert before == encoder_revision(tmp_path)
    weights.write_bytes(b"\0" * 999 + b"\1")
    assert encoder_revision(tmp_path) != before


def test_length_limits(load: Any, folders: dict[str, Path]) -> None:
    from imgrl.policies import load_policy

    with pytest.raises(ConfigError, match="at least 1 for Flux"):
        load_policy(folders["flux"], max_sequence_length=0)
    with pytest.raises(ConfigError, match="between 0 and 512"):
        load_policy(folders["sd3"], max_sequence_length=513)
