"""imgrl fine-tunes text-to-image diffusion and flow models with reinforcement learning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imgrl._compat import watch_for_torchvision

watch_for_torchvision()  # before anything can import torchvision

__version__ = "0.1.0"

# The public names and their modules. They load on first use, so that `import imgrl` stays light.
_PUBLIC = {
    "AWM": "imgrl.objectives.image",
    "CRD": "imgrl.objectives.image",
    "Constant": "imgrl.anchor",
    "DGPO": "imgrl.objectives.image",
    "GRPO": "imgrl.objectives.image",
    "ImgrlError": "imgrl.errors",
    "LoraSpec": "imgrl.policies.lora",
    "NFT": "imgrl.objectives.image",
    "Policy": "imgrl.policies",
    "Prompt": "imgrl.types",
    "Protocol": "imgrl.evaluation.protocol",
    "Ramp": "imgrl.anchor",
    "Recipe": "imgrl.recipe",
    "RewardSet": "imgrl.rewards",
    "RewardSpec": "imgrl.rewards",
    "Samples": "imgrl.types",
    "Scores": "imgrl.types",
    "StochasticSampler": "imgrl.flow",
    "TimeSampler": "imgrl.flow",
    "Trainer": "imgrl.training.image_loop",
    "VelocityAnchor": "imgrl.anchor",
    "evaluate_shapes": "imgrl.evaluation.shapes",
    "load_policy": "imgrl.policies",
    "load_prompts": "imgrl.data.prompts",
    "resolve": "imgrl.config",
}

__all__ = [
    "__version__",
    "AWM",
    "CRD",
    "Constant",
    "DGPO",
    "GRPO",
    "ImgrlError",
    "LoraSpec",
    "NFT",
    "Policy",
    "Prompt",
    "Protocol",
    "Ramp",
    "Recipe",
    "RewardSet",
    "RewardSpec",
    "Samples",
    "Scores",
    "StochasticSampler",
    "TimeSampler",
    "Trainer",
    "VelocityAnchor",
    "evaluate_shapes",
    "load_policy",
    "load_prompts",
    "resolve",
]

if TYPE_CHECKING:
    from imgrl.anchor import Constant, Ramp, VelocityAnchor
    from imgrl.config import resolve
    from imgrl.data.prompts import load_prompts
    from imgrl.errors import ImgrlError
    from imgrl.evaluation.protocol import Protocol
    from imgrl.evaluation.shapes import evaluate_shapes
    from imgrl.flow import StochasticSampler, TimeSampler
    from imgrl.objectives.image import AWM, CRD, DGPO, GRPO, NFT
    from imgrl.policies import Policy, load_policy
    from imgrl.policies.lora import LoraSpec
    from imgrl.recipe import Recipe
    from imgrl.rewards import RewardSet, RewardSpec
    from imgrl.training.image_loop import Trainer
    from imgrl.types import Prompt, Samples, Scores


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'imgrl' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
