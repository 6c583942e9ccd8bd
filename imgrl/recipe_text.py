"""A language recipe: every setting of one `imgrl lm train` run, as frozen dataclasses with defaults.

Like :mod:`imgrl.recipe`, whose parts it uses: ``TextRecipe(objective=ASFT())`` is ``objective: {name: asft}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from imgrl.analysis.masks import MaskKind
from imgrl.anchor import Ema, Frozen, Snapshot
from imgrl.objectives.text import (
    ADPO,
    ASFT,
    DFT,
    DPO,
    FSFT,
    GRPO,
    KDRL,
    SFT,
    SFTKL,
    SPINE,
    TRRD,
    TTRL,
    MetaDistill,
    ReMix,
)
from imgrl.policies.lora import LoraSpec
from imgrl.recipe import (
    Checkpoint,
    NonNegative,
    NonNegativeFloat,
    Optimizer,
    Positive,
    PositiveFloat,
    Text,
    Tracking,
)
from imgrl.rewards import RewardSpec

__all__ = [
    "VLLM",
    "AnyTextObjective",
    "Generation",
    "TextBatchSizes",
    "TextData",
    "TextEvaluation",
    "TextModel",
    "TextRecipe",
    "TextRun",
]

AnyTextObjective = (
    SFT | DPO | DFT | ASFT | SFTKL | FSFT | GRPO | ADPO | TRRD | KDRL | ReMix | TTRL | SPINE | MetaDistill
)


@dataclass(frozen=True, kw_only=True)
class TextRun:
    """Where a run writes, how it is seeded and when it stops."""

    dir: Text | None = None
    """Run folder; the command line makes a new one under ``runs/`` if it is None."""
    seed: NonNegative = 0
    steps: Positive = 100
    """Optimiser steps."""
    minutes: PositiveFloat | None = None
    """Stop after this many minutes of training, evaluation not counted, if that comes first; resumed runs count on."""


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """The language model to train."""

    path: Text = "tiny-lm"
    """A transformers folder, a hub name, or a bundled model."""
    train: Literal["lora", "full"] = "full"
    lora: LoraSpec = LoraSpec(rank=16, alpha=32, targets="all-linear")
    mask: MaskKind | None = None
    """Trains some entries of each matrix only; see the image recipe's."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the arithmetic; trained weights stay float32."""
    teacher: Text | None = None
    """A larger model with the same tokenizer, for objectives that ask one."""
    gradient_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Training problems."""

    prompts: Text = "arithmetic:train"
    """The built-in problems, or a .jsonl, .json, .csv or .parquet file. Supervised objectives read the columns
    ``prompt`` and ``completion``, preferences ``prompt``, ``chosen`` and ``rejected``, online ones ``prompt`` and
    whatever columns their rewards ask for."""
    count: Positive | None = None
    """How many rows, the first ones of a file; None takes 4096 of the built-in problems and all of a file."""
    max_tokens: Positive = 512
    """Longest sequence of supervised training and of preferences; longer ones are cut. Rows whose prompt alone fills
    it are left out, and the run says how many."""


@dataclass(frozen=True, kw_only=True)
class VLLM:
    """Completions by vLLM, as TRL drives it; the loss reads the trained model's own probabilities of them.

    Its random numbers are its own: neither ``run.seed`` nor an exact resume reaches them.
    """

    mode: Literal["colocate", "server"] = "colocate"
    """On the training GPUs, or by a server that TRL can send weights to (see its documentation)."""
    url: Text | None = None
    """The server's address."""
    memory: Annotated[float, Gt(0), Le(1)] | None = None
    """Share of each GPU's memory that a colocated vLLM takes; None leaves it to TRL."""
    tensor_parallel: Positive | None = None
    """GPUs a colocated model is split over."""

    def __post_init__(self) -> None:
        """Refuse a server without an address, and settings that nobody reads."""
        if (self.mode == "server") != (self.url is not None):
            raise ValueError(
                f"Expected url with mode 'server' and only there, got mode {self.mode!r} and url {self.url!r}."
            )
        if self.mode == "server" and (self.memory, self.tensor_parallel) != (None, None):
            raise ValueError(
                "Expected memory and tensor_parallel with mode 'colocate' only; a server is started with its own."
            )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How completions are sampled while training."""

    max_tokens: Positive = 96
    temperature: PositiveFloat = 1.0
    """Also divides the logits in the loss: the ratio is then that of the distribution that was sampled."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    vllm: VLLM | None = None
    """None generates with the trained model itself."""


@dataclass(frozen=True, kw_only=True)
class TextBatchSizes:
    """The geometry of a step, counted over all processes."""

    groups: Positive = 16
    """Prompts a step; for supervised objectives sequences, for preferences pairs."""
    group_size: Positive = 8
    """Completions a prompt; 1 where none are generated."""
    votes: Positive | None = None
    """Completions a prompt that are sampled and judged, such as those that vote; the first ``group_size`` of them are
    trained on, compared with each other: their rewards are the logged ones. None: as many."""
    micro: Positive | None = None
    """Sequences in one forward-backward pass on each process; None takes all at once."""

    @property
    def sampled(self) -> int:
        """Completions a prompt."""
        return self.votes or self.group_size


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """Held-out problems, the same before, during and after."""

    prompts: Text = "arithmetic:heldout"
    """The built-in problems, or a file with the columns ``prompt`` and ``answer``."""
    every: NonNegative = 20
    """Optimiser steps between evaluations; 0 evaluates only before and after."""
    limit: Positive = 96
    """Use the first so many problems."""
    samples: Positive = 4
    """Completions a problem; Pass@1 is their mean, Pass@k whether any is right."""
    temperature: NonNegativeFloat = 1.0
    """0 is greedy, with one completion."""
    verifier: Text | RewardSpec = "arithmetic"
    """The reward that judges completions, by name or as ``{use, args}``; right is 1."""
    kl: bool = False
    """Measure the KL to the model before training also where the run does not keep that model by itself (full
    fine-tuning with no frozen anchor), at the cost of a copy of its weights; elsewhere it is measured anyway."""
    seed: NonNegative = 1234
    batch: Positive = 256
    """Completions generated at once."""


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Everything that defines a language run; only ``run.dir`` has no default."""

    run: TextRun = TextRun()
    model: TextModel = TextModel()
    data: TextData = TextData()
    rewards: Annotated[Mapping[Text, float | Text | RewardSpec], MinLen(1)] = field(
        default_factory=lambda: {"arithmetic": 1.0}
    )
    """Rewards of online objectives; supervised ones do not look at them. One that says None of all completions of a
    prompt does not apply to it, and the others decide; a completion that one fails on, or passes over alone, is left
    out."""
    failure_budget: Annotated[float, Ge(0), Le(1)] = 0.25
    """The run stops when a reward fails, after its retries, on more than this share of a step's completions."""
    generation: Generation = Generation()
    batch: TextBatchSizes = TextBatchSizes()
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the deviation of the group or of the batch, or not at all. A group's is that of a sample, as
    TRL has it; with trrd, ttrl and spine the population's, as their papers have it."""
    objective: AnyTextObjective = GRPO()
    anchor: Frozen | Ema | Snapshot = Frozen()
    """How the model that an objective stays close to moves: not at all, as a moving average of the trained weights, or
    renewed every so many optimiser steps. Of a LoRA the factors are averaged."""
    optimizer: Optimizer = Optimizer(lr=3e-4, weight_decay=0.0)
    evaluation: TextEvaluation = TextEvaluation()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
