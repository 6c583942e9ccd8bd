import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imgrl.errors import ConfigError
from imgrl.policies import load_policy
from imgrl.policies.embeddings import EmbeddingTable, encode_ahead, encoder_revision
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


CPU = torch.device("cpu")
WORDS = [f"word {i}" for i in range(10)]


def counting(folder: Path | None, rows: int) -> tuple[EmbeddingTable, list[str]]:
    """A table of 40-byte rows with room for some of them, and the prompts it encoded so far."""
    encoded: list[str] = []

    def encode(prompt: str) -> dict[str, torch.Tensor]:
        encoded.append(prompt)
        return {"prompt_embeds": torch.full((10,), float(len(prompt)))}

    table = EmbeddingTable(encode, lambda: {}, folder)
    table.capacity = rows * 40
    return table, encoded


def test_memory_holds_the_rows_used_last_and_the_empty_prompt(tmp_path: Path) -> None:
    table, encoded = counting(tmp_path, rows=3)
    table(["", "a", "bb", "ccc", "a"], CPU)
    assert list(table._rows) == ["", "ccc", "a"]
    table(WORDS, CPU)
    assert list(table._rows) == ["", *WORDS[-2:]] and table._held == 120
    for file in (table.path(""), table.path(WORDS[-1])):
        assert file is not None
        file.unlink()
    again = table(["", *WORDS[::-1]], CPU).tensors["prompt_embeds"]
    assert again[:, 0].tolist() == [0.0] + [6.0] * 10
    assert encoded == ["", "a", "bb", "ccc", *WORDS]  # each once: what left memory was read back


def test_memory_is_the_only_place_without_a_folder() -> None:
    table, encoded = counting(None, rows=3)
    table(WORDS, CPU)
    table(WORDS, CPU)
    assert encoded == WORDS


def spied(policy: Any) -> list[str]:
    """The prompts that the policy's encoders see from now on."""
    seen: list[str] = []
    encode = policy._encode_text
    policy._encode_text = lambda pipeline, prompt: (seen.append(prompt), encode(pipeline, prompt))[1]
    return seen


def test_prompts_that_fit_are_encoded_into_memory_ahead(load: Any, family: str, tmp_path: Path) -> None:
    policy = load(family)
    assert encode_ahead(policy, WORDS, tmp_path / "rows") is None
    assert policy._encoders is None and list(tmp_path.iterdir()) == []
    expected = load(family).encode(["", *WORDS]).tensors
    for name, tensor in policy.encode(["", *WORDS]).tensors.items():
        assert torch.equal(tensor, expected[name])
    assert policy._encoders is None


def test_more_prompts_than_memory_takes_become_files(load: Any, family: str, tmp_path: Path) -> None:
    policy, folder = load(family), tmp_path / "rows"
    table, expected = policy._embeddings, load(family).encode(["", *WORDS]).tensors
    row = table.bytes_for(0)
    table.capacity = 10 * row  # one less than needed
    told = encode_ahead(policy, WORDS, folder)
    assert told == f"10 prompts: their text embeddings (0.0 GiB) are files in {folder}"
    assert policy._encoders is None and len(list(folder.glob("*.safetensors"))) == 11
    for _ in range(2):
        for name, tensor in policy.encode(["", *WORDS]).tensors.items():
            assert torch.equal(tensor, expected[name])
        assert table._held == 10 * row == sum(t.nbytes for r in table._rows.values() for t in r.values())
    assert policy._encoders is None
    resumed = load(family, embedding_folder=folder)
    resumed._embeddings.capacity = 0
    encode_ahead(resumed, WORDS, tmp_path / "other")
    assert resumed._encoders is None and not (tmp_path / "other").exists()


@pytest.mark.parametrize("capacity", [0, 1 << 20])
def test_processes_share_the_encoding_through_files(load: Any, tmp_path: Path, capacity: int) -> None:
    first, second = (load("sd3", embedding_folder=tmp_path) for _ in range(2))
    seen = [spied(policy) for policy in (first, second)]
    first._embeddings.capacity = second._embeddings.capacity = capacity

    def meanwhile() -> None:
        assert seen == [["", *WORDS[0::2]], []]
        encode_ahead(second, WORDS, tmp_path / "unused", rank=1, size=2)

    encode_ahead(first, WORDS, tmp_path / "unused", rank=0, size=2, wait=meanwhile)
    assert seen == [["", *WORDS[0::2]], WORDS[1::2]]
    expected = load("sd3").encode(WORDS).tensors["prompt_embeds"]
    for policy in (first, second):
        assert torch.equal(policy.encode(WORDS).tensors["prompt_embeds"], expected)
        assert policy._encoders is None


def test_processes_that_see_no_files_of_others_encode_all(load: Any, tmp_path: Path) -> None:
    policy = load("sd3", embedding_folder=tmp_path)
    policy._embeddings.capacity = 0
    seen = spied(policy)
    encode_ahead(policy, WORDS, tmp_path, rank=1, size=2)
    assert seen == ["", *WORDS[1::2], *WORDS[0::2]]


def test_a_file_cut_short_is_encoded_again_before_training(load: Any, tmp_path: Path) -> None:
    load("sd3", embedding_folder=tmp_path).encode(["", *WORDS])
    policy = load("sd3", embedding_folder=tmp_path)
    policy._embeddings.capacity = 0
    torn, empty = (policy._embeddings.path(prompt) for prompt in WORDS[3:5])
    torn.write_bytes(torn.read_bytes()[:-1])
    empty.write_bytes(b"")
    seen = spied(policy)
    with pytest.warns(UserWarning, match="corrupted"):
        encode_ahead(policy, WORDS, tmp_path)
    assert seen == WORDS[3:5] and policy._encoders is None


def test_a_disk_without_room_is_refused_before_encoding(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load("sd3")
    policy._embeddings.capacity = 0
    row = policy._embeddings.bytes_for(0)
    seen = spied(policy)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * row - 1))
    with pytest.raises(ConfigError, match="embeddings of 10 prompts need .* set model.embedding_folder to"):
        encode_ahead(policy, WORDS, tmp_path)
    assert seen == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * row))
    assert encode_ahead(policy, WORDS, tmp_path) is not None and seen == WORDS


def test_the_key_changes_with_dtype_length_and_prompt(load: Any, tmp_path: Path) -> None:
    base = load("flux", embedding_folder=tmp_path)
    low, longer = (
        load("flux", embedding_folder=tmp_path, dtype="bf16"),
        load("flux", embedding_folder=tmp_path),
    )
    longer.max_sequence_length = 9
    paths = {p._embeddings.path("a") for p in (base, low, longer)}
    assert len(paths) == 3 and base._embeddings.path("a") != base._embeddings.path("b")


@pytest.mark.parametrize(
    ("part", "output"), [("text_encoder", "pooled_prompt_embeds"), ("text_encoder_2", "prompt_embeds")]
)
def test_another_encoder_does_not_get_the_rows_of_this_one(
    folders: dict[str, Path], tmp_path: Path, part: str, output: str
) -> None:
    """A copy of the model with one weight changed, beside the same cache, encodes as it does without one."""
    changed, cache = tmp_path / "changed", tmp_path / "cache"
    shutil.copytree(folders["flux"], changed)
    file = changed / part / "model.safetensors"
    weights = load_file(file)
    name = next(key for key in weights if "layer_norm" in key)
    weights[name][0] += 1
    save_file(weights, file, {"format": "pt"})

    def encoded(folder: Path, cache: Path | None) -> torch.Tensor:
        policy = load_policy(folder, train="none", max_sequence_length=8, embedding_folder=cache)
        return policy.encode(["a"]).tensors[output]

    first = encoded(folders["flux"], cache)
    second = encoded(changed, cache)
    assert len(list(cache.iterdir())) == 2
    assert torch.equal(second, encoded(changed, None)) and not torch.equal(second, first)


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
    with pytest.raises(ConfigError, match="at least 1 for Flux"):
        load_policy(folders["flux"], max_sequence_length=0)
    with pytest.raises(ConfigError, match="between 0 and 512"):
        load_policy(folders["sd3"], max_sequence_length=513)
