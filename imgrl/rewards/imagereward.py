"""ImageReward-v1.0 (Xu et al. 2023, arXiv 2304.05977) on transformers; the authors' package cannot run on version 5.

BLIP's image encoder is read by BLIP's text encoder (BERT with cross-attention); the first token's vector goes through
five linear layers without activations, and the number is standardised. The published file is read as it is: its tensors
have the names of BLIP's own code, which are translated here, every one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imgrl.errors import RewardError
from imgrl.rewards.aesthetic import linear_stack
from imgrl.rewards.embeddings import chosen_device
from imgrl.rewards.fingerprint import fingerprint
from imgrl.rewards.hub import check_source, in_brief, load_whole, not_loaded, read_weights, weight_file
from imgrl.rewards.pixels import CLIP_MEAN, CLIP_STD, normalised, to_uint8

__all__ = ["ImageReward", "centre_cut", "translated"]

_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
_TOKENS = 35
_HEAD_WIDTH = 64  # of every attention head in ViT-L and in BERT
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|blip\.text_encoder\.embeddings\.position_ids$")
"""Saved with the model but read by nothing in it: the projections of BLIP's contrastive loss, and a counter."""

_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
"""BLIP's name of a tensor of the image encoder -> that of transformers. The text encoder's names are the same."""


class ImageReward:
    """About -2.3 to 2, standardised over the authors' images; how high depends on the prompt too.

    Args:
        weights: ``ImageReward.pt``, about 1.8 GB; None takes it from the hub (``THUDM/ImageReward``).
        tokenizer: a folder or hub name of BERT's uncased tokenizer.
        device: where it computes; None is the first GPU, if there is one.
        batch: images it sees at once.

    Raises:
        RewardError: if the weights or the tokenizer are missing or do not fit.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        tokenizer: str = "bert-base-uncased",
        device: str | None = None,
        batch: int = 16,
    ) -> None:
        if batch < 1:
            raise ValueError(f"Expected batch >= 1, got {batch}.")
        self.device, self.batch = chosen_device(device), batch
        file = weight_file(weights, repository="THUDM/ImageReward", file="ImageReward.pt")
        self.model = _open(file, self.device)
        self.tokenizer = _tokenizer(tokenizer, self.model.words)

    @property
    def identity(self) -> str:
        """Digest of the weights, whatever file they came from."""
        return fingerprint(self.model)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1] for their prompts."""
        raw = []
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            pixels = normalised(centre_cut(to_uint8(images[part]), self.model.side), CLIP_MEAN, CLIP_STD)
            text = self.tokenizer(
                list(prompts[part]),
                padding="max_length",
                truncation=True,
                max_length=_TOKENS,
                return_tensors="pt",
            )
            raw.append(
                self.model(pixels.to(self.device), *(text[k].to(self.device) for k in _TEXT_INPUTS)).cpu()
            )
        return (torch.cat(raw) - _MEAN) / _STD


_TEXT_INPUTS = ("input_ids", "attention_mask")


def centre_cut(pictures: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n, side, side, 3]: shorter side to ``side``, bicubic, the middle cut out."""
    found = []
    for pixels in pictures:
        picture = Image.fromarray(pixels)
        short = min(picture.size)
        width, height = (side * length // short for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - side) / 2), round((height - side) / 2)
        found.append(np.asarray(picture.crop((left, top, left + side, top + side))))
    return np.stack(found)


class _Model(nn.Module):
    """The network, of the sizes that its tensors have."""

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        width, patch = given["vision.embeddings.patch_embedding.weight"].shape[::3]
        places = given["vision.embeddings.position_embedding"].shape[1]
        self.side = patch * round((places - 1) ** 0.5)
        self.words, text_width = given["text.embeddings.word_embeddings.weight"].shape
        vision = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=len(given["vision.encoder.layers.0.mlp.fc1.bias"]),
            num_hidden_layers=_depth(given, r"vision\.encoder\.layers\.(\d+)\."),
            num_attention_heads=width // _HEAD_WIDTH,
            image_size=self.side,
            patch_size=patch,
            layer_norm_eps=1e-6,  # as in BLIP's code; transformers assumes 1e-5
        )
        text = BlipTextConfig(
            vocab_size=self.words,
            hidden_size=text_width,
            encoder_hidden_size=width,
            intermediate_size=len(given["text.encoder.layer.0.intermediate.dense.bias"]),
            num_hidden_layers=_depth(given, r"text\.encoder\.layer\.(\d+)\."),
            num_attention_heads=text_width // _HEAD_WIDTH,
            max_position_embeddings=len(given["text.embeddings.position_embeddings.weight"]),
            layer_norm_eps=1e-12,
            is_decoder=True,  # only so that it has cross-attention; it is called as an encoder
        )
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = linear_stack(text_width)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Raw numbers [n] of pixels [n, 3, s, s] and tokens [n, 35]."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return self.mlp(read[:, 0].float()).squeeze(-1)


def _depth(given: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for found in (re.match(pattern, name) for name in given) if found)


def translated(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under the names of this model.

    Raises:
        ValueError: naming a tensor that is not ImageReward's.
    """
    found = {}
    for name, tensor in given.items():
        if _UNUSED.match(name):
            continue
        if name.startswith("blip.visual_encoder."):
            key = name.removeprefix("blip.visual_encoder.")
            rule = next(((old, new) for old, new in _VISION if re.match(old, key)), None)
            if rule is None:
                raise ValueError(f"{name} is no tensor of ImageReward")
            found["vision." + re.sub(*rule, key)] = tensor
        elif name.startswith("blip.text_encoder."):
            found["text." + name.removeprefix("blip.text_encoder.")] = tensor
        elif name.startswith("mlp.layers."):
            found["mlp." + name.removeprefix("mlp.layers.")] = tensor
        else:
            raise ValueError(f"{name} is no tensor of ImageReward")
    return found


@cache
def _open(file: Path, device: str) -> _Model:
    """The model in a published file, once."""
    given = read_weights(file)
    try:
        named = translated(given)
        model = _Model(named)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RewardError(
            f"{file} does not hold ImageReward's weights ({in_brief(error)}); download it again."
        ) from error
    load_whole(model, named, file=file, what="ImageReward's weights")
    return model.float().to(device).eval().requires_grad_(False)


def _tokenizer(source: str, words: int) -> Any:
    from transformers import BertTokenizer

    check_source(source)
    try:
        found = BertTokenizer.from_pretrained(source)
    except Exception as error:  # the libraries below it raise their own kinds
        what = f"BERT's tokenizer {source!r}"
        raise not_loaded(what, error, argument="tokenizer", wanted="a hub name") from error
    if len(found) > words:
        raise RewardError(
            f"The tokenizer {source!r} has {len(found)} words, but the weights only know {words}; "
            "ImageReward's is bert-base-uncased."
        )
    return found
