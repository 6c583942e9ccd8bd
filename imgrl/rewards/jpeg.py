"""Size of an image as JPEG: the reward that needs no weights (Black et al., DDPO, 2023).

Quality 95 and 4:2:0 subsampling are pinned: both change the size, and library defaults may move. The range
grows with the area: a flat image of 64 x 64 pixels takes 0.69 kB, nearly all of it headers, uniform noise
5.4 kB, and pure black and white in every channel 6.4 kB; at 512 x 512 these are 4.7, 307 and 373 kB (measured
with libjpeg-turbo 3.2). Such a range is narrow beside other rewards' 0 to 1; normalise per group before weighting.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from imgrl.rewards.pixels import to_uint8

__all__ = ["Compressibility", "Incompressibility", "jpeg_kilobytes"]


def jpeg_kilobytes(images: Tensor, *, quality: int = 95, subsampling: str = "4:2:0") -> list[float]:
    """Return the size of each image [n, 3, H, W] in [0, 1] as JPEG, in units of 1000 bytes."""
    sizes = []
    for pixels in to_uint8(images):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
        sizes.append(file.tell() / 1000)
    return sizes


class Incompressibility:
    """Size in kB: rewards detail.

    From 0.7 (flat) to 5.4 (noise) at 64 pixels, from 4.7 to 307 at 512.

    Args:
        quality: of the JPEG, 1 to 95.
        subsampling: of its colours, "4:4:4", "4:2:2" or "4:2:0".
    """

    def __init__(self, *, quality: int = 95, subsampling: str = "4:2:0") -> None:
        if not 1 <= quality <= 95 or subsampling not in ("4:4:4", "4:2:2", "4:2:0"):
            raise ValueError(
                "Expected quality 1 to 95 and subsampling 4:4:4, 4:2:2 or 4:2:0, "
                f"got {quality} and {subsampling}."
            )
        self.settings = {"quality": quality, "subsampling": subsampling}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Score images [n, 3, H, W]; prompts play no role."""
        del prompts
        return jpeg_kilobytes(images, **self.settings)


class Compressibility(Incompressibility):
    """Minus the size in kB, divided by 500: rewards smoothness.

    From -0.011 (noise) to -0.0014 (flat) at 64 pixels, from -0.61 to -0.0094 at 512.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Score images [n, 3, H, W]; prompts play no role."""
        return [-size / 500 for size in super().__call__(images, prompts)]
