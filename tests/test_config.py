"""Recipes: every bad input is refused with a sentence that names the key and the place."""

import dataclasses
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imgrl.anchor.schedule import Constant, Ramp
from imgrl.config import DEFAULT_RECIPE, check_batch, config_hash, dump, resolve
from imgrl.errors import ConfigError
from imgrl.recipe import CRD, NFT, Batch, Optimizer, Recipe, RewardSpec, Rollout, Run, as_dict


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        resolve(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("objective:\n  name: crd\n  bta: 1\n", ["'objective.bta'", ":3", "did you mean 'beta'"]),
        ("objectiv: {}\n", ["'objectiv'", ":1", "did you mean 'objective'"]),
        ("objective: {name: crdd}\n", ["objective.name", '"crdd"', "did you mean 'crd'"]),
        ("objective: {name: nft, regression: mse}\n", ["'objective.regression'", ":1"]),
        ("objective: {name: crd, beta: -1}\n", ["objective cannot be as written", "beta", ":1"]),
        ("\nbatch: {groups: lots}\n", ["batch.groups", "valid integer", '"lots"', ":2"]),
        ("batch: {groups: 12.0}\n", ["batch.groups", "valid integer", "12.0"]),
        ("batch: {groups: true}\n", ["batch.groups", "valid integer", "true"]),
        ("batch: {groups: 0}\n", ["batch.groups", "greater than 0", "0 was given"]),
        ("batch: 3\n", ["batch must hold keys", "3 was given", ":1"]),
        ("optimizer: {lr: .nan}\n", ["optimizer.lr", "finite"]),
        ("optimizer: {betas: [0.9]}\n", ["optimizer.betas", "needs more values"]),
        ("optimizer: {betas: [0.9, 0.9, 0.9]}\n", ["optimizer.betas", "too many"]),
        ("model: {train: qlora}\n", ["model.train", "'lora' or 'full'", '"qlora"']),
        ("model: {lora: {rank: 0}}\n", ["model.lora", "rank"]),
        ("evaluation: {steps: []}\n", ["evaluation.steps", "needs more values"]),
        ("rewards: {}\n", ["rewards must have at least one entry"]),
        ("rewards: {shapes: {wieght: 1}}\n", ["'rewards.shapes.wieght'", "did you mean 'weight'"]),
        ("rewards: {shapes: 0}\n", ["every reward has weight 0"]),
        ("data: {prompts: }\n", ["data.prompts", "null was given"]),
        ("run: {seed: 1}\nrun: {seed: 2}\n", [":2 repeats the key 'run'", ":1"]),
        ("run: {seed: 1, seed: 1}\n", ["repeats the key 'seed'"]),
        ("run: [1\n", ["not valid YAML", ":2"]),
        ("- 1\n", ["must be a mapping of sections"]),
        ("run: &a {seed: 1}\ndata: *a\n", [":2 uses a YAML alias"]),
        ("run: !!python/object/apply:os.getcwd []\n", ["YAML tag", ":1"]),
        ("? [1]\n: 2\n", ["a key that is not a name"]),
        ("evaluation: {weights: ema}\n", ["evaluation.ema"]),
    ],
)
def test_bad_recipe(tmp_path, text, parts):
    message = refusal(write(tmp_path, text))
    for part in parts:
        assert part in message


def test_a_recipe_must_exist_and_be_text(tmp_path):
    assert "neither a file nor a bundled recipe" in refusal(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "could not be read as UTF-8" in refusal(tmp_path / "binary.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_recipe(tmp_path):
    path = write(tmp_path, "")
    path.chmod(0)
    assert "could not be read" in refusal(path)


def test_an_empty_recipe_is_the_default_of_every_setting(tmp_path):
    assert resolve(write(tmp_path, "")) == Recipe()
    assert resolve(write(tmp_path, "# nothing\n")) == Recipe()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["objective.bta=1"], ["'objective.bta'", "override 'objective.bta=1'", "did you mean 'beta'"]),
        (["beta"], ["section.key=value"]),
        (["=1"], ["section.key=value"]),
        (["run..seed=1"], ["section.key=value"]),
        (["run.seed=1", "run.seed=2"], ["'run.seed=1'", "'run.seed=2'", "keep one"]),
        (["run={seed: 1}", "run.seed=2"], ["keep one"]),
        (["run.seed.x=1"], ["goes into run.seed"]),
        (["batch.groups=many"], ["batch.groups", '"many"', "override"]),
        (["run.dir=[1"], ["not valid YAML"]),
    ],
)
def test_bad_override(tmp_path, overrides, parts):
    message = refusal(write(tmp_path, "run: {seed: 1}\n"), *overrides)
    for part in parts:
        assert part in message


def test_overrides_reach_every_kind_of_value(tmp_path):
    recipe = resolve(
        write(tmp_path, "batch: {groups: 6, micro_groups: 3}\n"),
        [
            "optimizer.lr=1e-3",
            "optimizer.betas=[0.8, 0.9]",
            "objective=nft",
            "run.dir=runs/x=1",
            "rewards.ocr={weight: 2}",
            "rewards.mine=rewards.py:mine",
            "optimizer.clip=null",
            "evaluation.steps=[5]",
        ],
    )
    assert recipe.optimizer == Optimizer(lr=0.001, betas=(0.8, 0.9), clip=None)
    assert recipe.objective == NFT()
    assert recipe.run == Run(dir="runs/x=1")
    assert recipe.rewards == {"ocr": RewardSpec(use="ocr", weight=2.0), "mine": "rewards.py:mine"}
    assert recipe.batch.groups == 6 and recipe.evaluation.steps == (5,)


def test_a_part_given_keeps_the_rest_of_its_parents_default():
    """NFT's own anchor is weak and unguided; setting its guidance must not bring CRD's weight in."""
    recipe = resolve(DEFAULT_RECIPE, ["objective={name: nft, anchor: {guidance: 2.0}}"])
    assert recipe.objective.anchor == dataclasses.replace(NFT().anchor, guidance=2.0)


def test_an_objective_without_a_name_is_the_default_one(tmp_path):
    assert resolve(write(tmp_path, "objective: {beta: 0.5}\n")).objective == CRD(beta=0.5)


def test_schedules_are_told_apart_by_their_keys():
    def old(text):
        return resolve(DEFAULT_RECIPE, [f"objective={{name: crd, old: {text}}}"]).objective.old

    assert old("0.3") == old("{value: 0.3}") == Constant(value=0.3)
    assert old("{start: 5, value: 0.0, slope: 0.1, end: 0.5}") == Ramp(start=5, value=0.0, slope=0.1, end=0.5)
    assert old("{slope: 0.25}") == dataclasses.replace(CRD().old, slope=0.25)


@pytest.mark.parametrize(
    ("batch", "processes", "parts"),
    [
        (Batch(group_size=1), 1, ["group_size is 1", "at least 2"]),
        (Batch(groups=12, micro_groups=5), 1, ["groups (12)", "micro_groups (5)", "1, 2, 3, 4, 6, 12"]),
        (
            Batch(groups=12, micro_groups=4, updates_per_round=2),
            1,
            ["updates_per_round (2)", "3 micro-batches"],
        ),
        (Batch(groups=3, group_size=3, micro_groups=3), 2, ["9 images", "2 processes", "1, 3, 9"]),
    ],
)
def test_batch_arithmetic(batch, processes, parts):
    with pytest.raises(ConfigError) as caught:
        check_batch(Recipe(batch=batch), processes=processes)
    for part in parts:
        assert part in str(caught.value)


def test_rollout_batch_is_limited_by_the_share_of_a_process():
    recipe = Recipe(batch=Batch(groups=4, group_size=4, micro_groups=4), rollout=Rollout(batch=8))
    check_batch(recipe, processes=2)  # 16 images over 2 processes: 8 each
    with pytest.raises(ConfigError, match="only 4 images a round; give at most 4"):
        check_batch(recipe, processes=4)


@given(
    groups=st.integers(1, 12),
    size=st.integers(1, 6),
    micro=st.integers(1, 12),
    updates=st.integers(1, 6),
    processes=st.integers(1, 4),
)
def test_geometry_is_accepted_exactly_when_everything_divides(groups, size, micro, updates, processes):
    recipe = Recipe(
        batch=Batch(groups=groups, group_size=size, micro_groups=micro, updates_per_round=updates)
    )
    fits = (
        size >= 2
        and groups % micro == 0
        and (groups // micro) % updates == 0
        and (micro * size) % processes == 0
    )
    try:
        check_batch(recipe, processes=processes)
    except ConfigError:
        assert not fits
    else:
        assert fits


def test_a_dump_reads_back_as_the_same_recipe(tmp_path):
    recipe = Recipe(
        objective=NFT(beta=0.1, old=Constant(value=0.5)),
        rewards={"shapes": 1.0, "ocr": RewardSpec(use="ocr", args={"mode": "detect"})},
    )
    assert resolve(write(tmp_path, dump(recipe))) == recipe
    assert resolve(write(tmp_path, dump(Recipe()))) == Recipe()


def test_a_dump_names_where_a_python_reward_was_defined():
    recipe = Recipe(rewards={"size": RewardSpec(use=os.path.getsize)})
    assert as_dict(recipe)["rewards"]["size"]["use"] == "genericpath:getsize"


def test_a_dump_is_plain_yaml():
    assert yaml.safe_load(dump(Recipe()))["batch"] == as_dict(Batch())


def test_the_hash_covers_what_a_resume_must_not_change():
    same = [Recipe(), Recipe(run=Run(dir="a", rounds=7, minutes=3.0)), resolve_with("checkpoint.every=1")]
    assert len({config_hash(recipe) for recipe in same}) == 1
    other = [
        Recipe(run=Run(seed=1)),
        Recipe(objective=CRD(beta=0.5)),
        Recipe(objective=NFT()),
        Recipe(rewards={"shapes": 2.0}),
        Recipe(batch=Batch(groups=16)),
    ]
    assert len({config_hash(recipe) for recipe in (*other, Recipe())}) == len(other) + 1


def resolve_with(override):
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        return resolve(file.name, [override])
