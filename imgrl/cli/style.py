"""``imgrl style``: teach a model the style of a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgrl.cli.common import Arguments, AsJson, print_json, split_arguments
from imgrl.cli.runs import Quiet, is_main, new_folder, refuse_results, saved_recipe
from imgrl.errors import ConfigError
from imgrl.training.launch import processes

if TYPE_CHECKING:
    from imgrl.recipe import Imitation, Recipe
    from imgrl.types import Prompt

__all__ = ["style"]

_RECIPE = "tiny-sd3/style"
_FEWEST_PROMPTS = 10
_UNCAPTIONED = (
    "The pictures have no captions, so they are compared with, not imitated: only what the model sometimes draws by "
    "itself can be learned. A .csv with the columns file and prompt gives them captions."
)


def style(
    arguments: Arguments = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Pictures of the style, at least 10: a folder, a .txt list, a .csv or .jsonl with captions, or "
            "world:outlined, world:pastel, world:hatched."
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="What to draw, without words of style: .txt or .jsonl. Default: captions, or the recipe's."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the recipe's.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder, and measure it.", metavar="RUN")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Network that figures are measured with, named as a reward's backbone. Default: efficientnet-lite0."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Customise a model to a style with Adv-GRPO's learning reward; default recipe: tiny-sd3/style.

    Every fifth picture is kept back. Written to the run folder: the LoRA (`imgrl export RUN --strength 0.5` for half of
    it), style/before-after.png, and style/style.json with figures at strength 0, 0.5 and 1 and what they can and cannot
    tell; rewards of the recipe that do not learn, such as `clip` with weight 0, are among them. On several GPUs:
    `torchrun --nproc-per-node 8 -m imgrl.cli.main style ...`; one of them measures.
    """
    recipe = _agreed(
        lambda: (
            _prepared(arguments, images, prompts, model) if resume is None else _resumed(arguments, resume)
        )
    )
    from imgrl.cli.train import run_recipe

    summary = run_recipe(recipe, resume=resume is not None, silent=quiet or as_json or not is_main())
    if summary.interrupted:
        raise typer.Exit(130)
    if not is_main():  # training has dissolved the group of processes; the first one measures alone
        return
    from imgrl.cli.style_report import measured, print_report

    figures = measured(recipe, Path(summary.run_dir), reward=_learning_reward(recipe), features=features)
    if as_json:
        print_json(figures)
    elif not quiet:
        print_report(figures)


def _agreed(prepare: Callable[[], Recipe]) -> Recipe:
    """What the first process prepares, which writes files, on every process; its refusal ends them all."""
    if processes() == 1:
        return prepare()
    from accelerate import Accelerator

    from imgrl.training.distributed import World

    world = World(Accelerator())
    recipe, refusal = None, None
    if world.main:
        try:
            recipe = prepare()
        except Exception as error:  # whatever it is, the others are waiting to hear of it
            refusal = error
    found = world.gather_objects([recipe])[0]
    if refusal is not None:
        raise refusal
    if found is None:
        raise typer.Exit(2)  # the first process says why
    return found


def _prepared(
    arguments: Sequence[str] | None, images: str | None, prompts: str | None, model: str | None
) -> Recipe:
    """Check everything given, and write into the run folder what the run will use."""
    from imgrl.config import resolve
    from imgrl.rewards.spec import RewardSpec
    from imgrl.rewards.splitting import split_references
    from imgrl.training.run_folder import open_folder

    if images is None:
        raise ConfigError("--images is missing: give a folder of pictures, or world:outlined to try it out")
    name, overrides = split_arguments(arguments)
    if model is not None:
        overrides = [*overrides, f"model.path={json.dumps(model)}"]
    recipe = resolve(name or _RECIPE, overrides, processes=processes())
    reward = _learning_reward(recipe)
    if not recipe.model.leaves_lora:
        raise ConfigError(
            "imgrl style makes a LoRA file, whose strength can be chosen: set model.train=lora and leave model.mask out"
        )
    folder = Path(recipe.run.dir or new_folder(name or _RECIPE))
    refuse_results(folder, "imgrl style")
    own = open_folder(str(folder)) / "style"
    train, _ = split_references(images, own)
    spec = recipe.rewards[reward]
    spec = spec if isinstance(spec, RewardSpec) else RewardSpec(use="adversarial")
    imitation = _own_imitation(recipe.imitation, train)
    left_out = imitation != recipe.imitation and imitation.pictures is None
    recipe = replace(
        recipe,
        run=replace(recipe.run, dir=str(folder)),
        rewards={**recipe.rewards, reward: replace(spec, args={**spec.args, "references": str(train)})},
        imitation=imitation,
    )
    given = _prompts(prompts, train)
    if given is not None:
        recipe = _with_prompts(recipe, given, own)
    if left_out:  # said last, so that a refusal stands alone
        typer.echo(_UNCAPTIONED, err=True)
    return recipe


def _own_imitation(settings: Imitation, train: Path) -> Imitation:
    """The recipe's imitation, if it has one, of the pictures given; of none where nothing says what they show."""
    from imgrl.rewards.splitting import CAPTIONS

    if settings.pictures is None:
        return settings
    sources = [file for file in (train.parent / CAPTIONS, train) if file.suffix == ".jsonl" and file.exists()]
    return replace(settings, pictures=str(sources[0]) if sources else None)


def _learning_reward(recipe: Recipe) -> str:
    """Name of the recipe's one adversarial reward."""
    names = [name for name, spec in recipe.rewards.items() if getattr(spec, "use", spec) == "adversarial"]
    if len(names) != 1:
        raise ConfigError(
            f"imgrl style needs a recipe with one adversarial reward, but this one has {len(names)}; "
            f"start from {_RECIPE}"
        )
    return names[0]


def _prompts(source: str | None, references: Path) -> list[Prompt] | None:
    """Prompts that were given or that the references have; None leaves it to the recipe.

    Raises:
        DataError: if references belong to prompts and a prompt has none.
    """
    from imgrl.data import load_prompts
    from imgrl.errors import DataError

    captions: list[str] = []
    if references.suffix == ".jsonl":
        lines = references.read_text(encoding="utf-8").splitlines()
        captions = [json.loads(line)["prompt"] for line in lines]
    if source is None:
        return load_prompts(captions) if captions else None
    found = load_prompts(source)
    without = [prompt.text for prompt in found if captions and prompt.text not in captions]
    if without:
        raise DataError(
            f"{len(without)} of {len(found)} prompts have no reference for training, the first {without[0]!r}; "
            "leave --prompts out to use the captions, or give the pictures without captions"
        )
    return found


def _with_prompts(recipe: Recipe, prompts: Sequence[Prompt], folder: Path) -> Recipe:
    """Train on four fifths of the prompts and evaluate on the rest, or on all of a few; both written down."""
    from imgrl.rewards.splitting import hold_out

    if len(prompts) < 2:
        raise ConfigError(
            "imgrl style needs at least two prompts to measure with, but there is one; add some"
        )
    few = len(prompts) < _FEWEST_PROMPTS
    kept, held = (prompts, prompts) if few else hold_out(prompts)
    files = folder / "prompts-train.jsonl", folder / "prompts-heldout.jsonl"
    for file, chosen in zip(files, (kept, held), strict=True):
        rows = [json.dumps({"prompt": prompt.text, **prompt.columns}) for prompt in chosen]
        file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    balance = recipe.data.balance if all(recipe.data.balance in p.columns for p in prompts) else None
    return replace(
        recipe,
        data=replace(
            recipe.data,
            prompts=str(files[0]),
            balance=balance,
            shares=recipe.data.shares if balance else {},
        ),
        evaluation=replace(recipe.evaluation, prompts=str(files[1])),
    )


def _resumed(arguments: Sequence[str] | None, run: Path) -> Recipe:
    from imgrl.config import resolve

    name, overrides = split_arguments(arguments)
    if name is not None:
        raise ConfigError(f"--resume uses the recipe in {run}, so leave out the recipe {name!r}")
    if not any((run / "style").glob("references-heldout.*")):
        raise ConfigError(f"{run} is no run of imgrl style: it has no references kept back")
    recipe = resolve(saved_recipe(run), overrides, processes=processes())
    return replace(recipe, run=replace(recipe.run, dir=str(run)))
