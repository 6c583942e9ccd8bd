"""A trained model ready to sample: base folder plus, if given, an exported LoRA of any rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgrl.cli.common import choose_device
from imgrl.errors import ConfigError, ModelError
from imgrl.resources import model_path

if TYPE_CHECKING:
    from imgrl.policies import LoraSpec, Policy
    from imgrl.recipe import Model

__all__ = [
    "DeviceName",
    "DistilledGuidance",
    "LoraPath",
    "ModelName",
    "Pixels",
    "Precision",
    "Solver",
    "TextLength",
    "check_solver",
    "load_for_sampling",
    "sampling_settings",
]

_SOLVERS = ("euler", "dpm2")

ModelName = Annotated[
    str | None,
    typer.Option(
        help="A diffusers folder, hub name or bundled model; default: what the LoRA's run trained, or tiny-sd3.",
        show_default=False,
    ),
]
LoraPath = Annotated[
    Path | None, typer.Option(help="An exported LoRA: its file, its folder, or the run that wrote it.")
]
TextLength = Annotated[
    int | None,
    typer.Option(min=0, help="Tokens of the T5 encoder; default: the run's, or the stock pipeline's number."),
]
DistilledGuidance = Annotated[
    float | None, typer.Option(min=0, help="Flux.1-dev's embedded guidance; default: the run's, or 3.5.")
]
Pixels = Annotated[int | None, typer.Option(min=1, help="Default: the run's, or the model's own.")]
Solver = Annotated[str, typer.Option(help="euler or dpm2.")]
DeviceName = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: what there is.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]


def check_solver(solver: str) -> Any:
    """Return ``solver`` if there is such a one.

    Raises:
        ConfigError: if not.
    """
    if solver not in _SOLVERS:
        raise ConfigError(f"--solver must be {' or '.join(_SOLVERS)}, but {solver!r} was given")
    return solver


def sampling_settings(model: str | None, lora: Path | None, **options: Any) -> Model:
    """Say how a model is loaded and sampled: as its run trained it, where it lies in a run; options given win.

    Trained weights mean little under another text length, embedded guidance or size than they were trained with.

    Args:
        model: a diffusers folder, hub name or bundled model; None takes the run's, or the default one.
        lora: an exported LoRA, its folder or its run; None for none.
        options: fields of a recipe's section ``model``; those that are None count as not given.

    Raises:
        ModelError: if there is no such LoRA.
        ConfigError: if the run's ``config.yaml`` cannot be read.
    """
    from imgrl.recipe import Model

    exported = Path(model) if model else None
    if lora is not None:
        exported = _lora_file(lora).parent
    saved = None if exported is None else _run_config(exported)
    trained = Model() if saved is None else _read_model(saved)
    if saved is not None and lora is not None and model is not None and not _same(model, trained.path):
        _note(f"{lora} was trained on {trained.path}; it is used on {model}, as --model says")
    if saved is None and exported is not None and _is_export(exported):
        _note(
            f"{exported} lies outside the run that wrote it, so the model's usual text length, embedded guidance and "
            "size are used where no option gives them"
        )
    given = {name: value for name, value in options.items() if value is not None}
    return replace(trained, path=trained.path if model is None else model, **given)


def load_for_sampling(settings: Model, lora: Path | None, *, device: str | None) -> Policy:
    """Load a model whose weights ``current`` are the base model's, with the LoRA if one is given.

    Raises:
        ModelError: if either is missing or they do not fit.
        ConfigError: if the settings do not suit the model.
    """
    from imgrl.policies import load_policy
    from imgrl.policies.export import load_lora

    where = choose_device(device)
    file = None if lora is None else _lora_file(lora)
    policy = load_policy(
        model_path(settings.path),
        train="none" if file is None else "lora",
        lora=None if file is None else _spec(file),
        dtype=settings.dtype,
        device=where,
        max_sequence_length=settings.max_sequence_length,
        distilled_guidance=settings.distilled_guidance,
        fold_zero_tokens=settings.fold_zero_tokens,
    )
    policy.latent_shape(settings.height, settings.width)  # refuses a size before the encoders are loaded
    if file is not None:
        load_lora(policy, file)
    return policy


def _lora_file(path: Path) -> Path:
    from imgrl.policies.export import LORA_FILE

    for file in (path, path / LORA_FILE, path / "lora" / LORA_FILE):
        if file.is_file():
            return file
    for folder in (path, path / "model"):
        if (folder / "model_index.json").is_file():
            raise ModelError(f"{folder} is a whole model and no LoRA; give it as --model {folder}")
    raise ModelError(f"there is no LoRA at {path}; give {LORA_FILE}, its folder, or a run folder")


def _is_export(folder: Path) -> bool:
    """Whether imgrl wrote this folder: other trainers put a ``config.yaml`` of theirs beside a LoRA too."""
    from imgrl.policies.export import MANIFEST_FILE

    return (folder / MANIFEST_FILE).is_file()


def _run_config(folder: Path) -> Path | None:
    """The recipe of the run in which an export lies: ``RUN/lora`` or ``RUN/export``."""
    saved = folder.resolve().parent / "config.yaml"
    return saved if _is_export(folder) and saved.is_file() else None


def _read_model(saved: Path) -> Model:
    from imgrl.config import resolve

    try:
        return resolve(saved).model
    except ConfigError as error:
        raise ConfigError(
            f"how the model was trained stands in {saved}, which is no recipe of this version: {error}; "
            "to sample without it, move the exported folder out of its run"
        ) from error


def _same(one: str, other: str) -> bool:
    first, second = model_path(one), model_path(other)
    if isinstance(first, Path) and isinstance(second, Path):
        return first.resolve() == second.resolve()
    return first == second


def _note(text: str) -> None:
    """On stderr, so that the output of --json stays JSON."""
    typer.echo(f"imgrl: {text}", err=True)


def _spec(file: Path) -> LoraSpec:
    """Rank and layers as the file has them; alpha equals rank because the export folds the scale into B."""
    from safetensors import SafetensorError, safe_open

    from imgrl.policies import LoraSpec

    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys() if ".lora_A." in key}
    except SafetensorError as error:
        raise ModelError(f"{file} is not a safetensors file: {error}") from error
    ranks = {shape[0] for shape in shapes.values()}
    if len(ranks) != 1:
        raise ModelError(
            f"{file} must hold LoRA layers of one rank, but has the ranks {sorted(ranks) or 'none'}"
        )
    rank = ranks.pop()
    paths = (key.removeprefix("transformer.").split(".lora_A.")[0] for key in shapes)
    return LoraSpec(rank=rank, alpha=float(rank), targets=tuple(paths))
