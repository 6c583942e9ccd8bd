"""A recipe: every setting of one training run, as frozen dataclasses with the vetted value as default.

The same objects are the Python interface and the YAML file: ``Recipe(objective=CRD(beta=0.5))`` is
``objective: {name: crd, beta: 0.5}``. `imgrl.config` reads and checks YAML; this module only says what there
is, writes it down again, and names the part that must agree when a run is resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen

from imgrl.analysis.masks import MaskKind
from imgrl.anchor.schedule import Constant, Schedule
from imgrl.objectives.image import AWM, CRD, DGPO, GRPO, NFT, AnyObjective
from imgrl.policies.lora import LoraSpec
from imgrl.rewards import RewardSpec

__all__ = [
    "AWM",
    "Advantage",
    "Batch",
    "CRD",
    "Checkpoint",
    "DGPO",
    "Data",
    "Evaluation",
    "GRPO",
    "Imitation",
    "LoraSpec",
    "Model",
    "NFT",
    "Optimizer",
    "Recipe",
    "RewardSpec",
    "Rollout",
    "Run",
    "Scoring",
    "Tracking",
    "as_dict",
    "config_hash",
    "dump",
    "flat_settings",
    "lasting_settings",
]

Positive = Annotated[int, Gt(0)]
NonNegative = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run writes, how it is seeded and when it stops."""

    dir: Text | None = None
    """Run folder; the command line makes a new one under ``runs/`` if it is None."""
    seed: NonNegative = 0
    """Seeds prompts, initial noise, training noise and times."""
    rounds: Positive = 100
    """Stop after this many rounds (a round is a rollout with its updates)."""
    deterministic: bool = False
    """Ask torch for its deterministic kernels, which some GPU code otherwise does without; slower."""
    minutes: PositiveFloat | None = None
    """Stop after this many minutes of training, evaluation not counted, if that comes first; resumed runs count on."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The pipeline to train and how it is held in memory."""

    path: Text = "tiny-sd3"
    """A diffusers pipeline folder (SD3 or Flux), a hub name, or a bundled model."""
    train: Literal["lora", "full"] = "lora"
    lora: LoraSpec = LoraSpec()
    mask: MaskKind | None = None
    """Trains some entries of each matrix only, chosen before training: the smallest (``low``), those outside the
    principal directions (``not_principal``), either (``safe``), or as many at random (``random``). A LoRA's product is
    masked, so the run leaves a whole model."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of the network's arithmetic; trained weights and losses stay float32."""
    vae_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the autoencoder's arithmetic when it decodes; its weights stay float32."""
    height: Positive | None = None
    """Image height in pixels; None takes the model's own size."""
    width: Positive | None = None
    distilled_guidance: NonNegativeFloat | None = None
    """Flux.1-dev's embedded guidance; None takes 3.5."""
    max_sequence_length: NonNegative | None = None
    """Tokens of the T5 encoder; None takes the stock pipeline's number."""
    fold_zero_tokens: bool = True
    """SD3 without T5: compute the stock pipeline's 256 zero tokens as one; equal up to rounding."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """torch.compile each transformer block."""
    embedding_folder: Text | None = None
    """Folder that keeps text embeddings between runs; without one, more than 2 GiB of them go to the run folder."""

    @property
    def lora_mask(self) -> MaskKind | None:
        """The mask of a LoRA's product; full fine-tuning masks its optimiser instead."""
        return self.mask if self.train == "lora" else None

    @property
    def leaves_lora(self) -> bool:
        """Whether a run leaves a LoRA file, and not a whole model."""
        return self.train == "lora" and self.mask is None


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training prompts."""

    prompts: Text | tuple[Text, ...] = "world:train"
    """A .txt or .jsonl file, a built-in set (``world:train``), or the prompts themselves."""
    balance: Text | None = None
    """A column, such as ``tag``, whose values should be equally frequent in every round."""
    shares: Mapping[Text, Positive] = field(default_factory=dict)
    """Values of ``balance`` that should be more frequent: ``{color_attr: 3}`` for three of it to one of the others."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What the rewards of a recipe share."""

    failure_budget: Share = 0.25
    """The run stops when a reward fails, after its retries, on more than this share of a round's images."""
    cache: Text | None = None
    """File that keeps scores between runs, for rewards that neither learn nor compare groups; None keeps none."""
    overlap: bool = False
    """Score the images of one ``rollout.batch`` while the next is sampled; for rewards that leave the sampling device
    idle, such as ones over a network."""


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """Captioned pictures learned from directly, beside the rewards: for what the model never draws by itself."""

    pictures: Text | None = None
    """A .csv with the columns file and prompt, a .jsonl of prompts with refs, or ``world:STYLE``; None for none."""
    weight: Schedule = Constant(value=1.0)
    """Weight of the pictures' flow-matching loss by optimiser step, such as ``{first: 1, last: 0, steps: 60}``."""
    batch: Positive = 48
    """Pictures an optimiser step, counted over all processes."""
    steps: NonNegative = 0
    """Optimiser steps on the pictures alone before the first round; schedules count them like any other."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How training images are sampled."""

    steps: Positive = 10
    solver: Literal["euler", "dpm2"] = "euler"
    guidance: Annotated[float, Ge(1)] = 1.0
    """Classifier-free guidance while sampling; 1 is off."""
    batch: Positive | None = None
    """Images a forward pass on each process; None takes all of the process's share at once."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The geometry of a round, counted over all processes."""

    groups: Positive = 12
    """Prompts a round."""
    group_size: Positive = 12
    """Images a prompt, at least 2: they are compared with each other."""
    micro_groups: Positive = 4
    """Whole groups in one forward-backward pass."""
    updates_per_round: Positive = 1
    """Optimiser steps a round; each takes an equal share of the micro-batches."""

    @property
    def images(self) -> int:
        """Images a round."""
        return self.groups * self.group_size


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """How a group's scores become advantages."""

    std: Literal["global", "group"] = "group"
    """Divide by the deviation over the round, or over the group."""
    combine: Literal["sum", "gdpo"] = "sum"
    """Several rewards: weighted sum first, or normalise each and then add."""
    eps: PositiveFloat = 1e-6
    eps_added: bool = False
    """Add eps to the deviation instead of using it as a floor."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and gradient clipping."""

    lr: PositiveFloat = 3e-4
    scale: Schedule = Constant(value=1.0)
    """Factor of the learning rate by optimiser step, such as ``{first: 1, last: 0.1, steps: 150}``."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-4
    eps: PositiveFloat = 1e-8
    clip: PositiveFloat | None = 1.0
    """Largest gradient norm; None leaves gradients as they are."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The fixed protocol of the held-out score, run before the first and after the last round too."""

    prompts: Text | tuple[Text, ...] = "world:heldout"
    every: NonNegative = 20
    """Rounds between evaluations; 0 evaluates only before and after."""
    images_per_prompt: Positive = 4
    limit: Positive | None = None
    """Use only the first prompts of the set."""
    steps: Annotated[tuple[Positive, ...], MinLen(1)] = (10, 40)
    """Sampler steps; evaluations during training use the first figure, before and after use all."""
    solver: Literal["euler", "dpm2"] = "euler"
    guidance: Annotated[float, Ge(1)] = 1.0
    weights: Literal["current", "sampling", "old", "ema"] = "current"
    ema: Fraction | None = None
    """Decay, per update, of an average of the weights; None keeps none."""
    seed: NonNegative = 1234
    """Initial noise of evaluation images; never touched by training."""
    batch: Positive | None = None
    """Images a forward pass; None takes the rollout's."""
    weight_drift: NonNegative = 0
    """How many matrices' distance from their start evaluations log, as ``weights/...`` of `imgrl diagnose`; 0: none."""
    grid: NonNegative = 8
    """Prompts shown in the sample grid of each evaluation; 0 draws none."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Full-state checkpoints."""

    every: NonNegative = 20
    """Rounds between checkpoints; 0 saves only the last."""
    keep: Positive = 2
    """Newest checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Trackers besides ``metrics.jsonl``, which is always written."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: Text = "imgrl"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that defines a run; only ``run.dir`` has no default."""

    run: Run = Run()
    model: Model = Model()
    data: Data = Data()
    rewards: Annotated[Mapping[Text, float | Text | RewardSpec], MinLen(1)] = field(
        default_factory=lambda: {"shapes": 1.0}
    )
    """Reward name to its weight, to where it is (weight 1), or to its full description."""
    scoring: Scoring = Scoring()
    imitation: Imitation = Imitation()
    rollout: Rollout = Rollout()
    batch: Batch = Batch()
    advantage: Advantage = Advantage()
    objective: AnyObjective = CRD()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()


def as_dict(recipe: Any) -> dict[str, Any]:
    """Return a recipe, or a part of it, as plain numbers, strings, lists and mappings.

    An objective also gets its ``name``, so that the result reads back as the same object.
    """
    out: dict[str, Any] = {}
    name = getattr(recipe, "name", None)
    if isinstance(name, str):
        out["name"] = name
    for item in fields(recipe):
        out[item.name] = _plain(getattr(recipe, item.name))
    return out


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return as_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if callable(value):  # a reward given in Python; YAML can only say where it was defined
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with every setting written out; `imgrl.config.resolve` reads it back."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key, ``{"run.seed": 0, ...}``; lists and empty mappings stay values."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        out |= flat_settings(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return out


def lasting_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a recipe (as :func:`as_dict` gives it) must agree when a run is resumed.

    Left out: where the run lies, when it stops, trackers and how often it saves. Those may change.
    """
    kept = {key: value for key, value in settings.items() if key not in ("tracking", "checkpoint")}
    run = {
        key: value
        for key, value in settings["run"].items()
        if key not in ("dir", "rounds", "steps", "minutes")
    }
    return kept | {"run": run}


def config_hash(recipe: Recipe) -> str:
    """Return a digest of :func:`lasting_settings`."""
    settings = lasting_settings(as_dict(recipe))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
