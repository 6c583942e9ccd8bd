"""Picture files, read strictly: what a network would see differently from a person is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["ENDINGS", "is_picture", "read_picture"]

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
"""Of the files that are read as pictures."""

_OTHER_ENDINGS = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".dng")
"""Of pictures that are refused: animated, of layers or lines, or read on some machines only."""

_LEAST = 8


def is_picture(file: Path) -> bool:
    """Whether its name says that it is a picture, of a kind that is read or of one that is refused."""
    return file.suffix.lower() in ENDINGS + _OTHER_ENDINGS


def read_picture(file: Path) -> Image.Image | str:
    """The picture as 8-bit RGB, turned as its camera was held, or what is wrong with it."""
    if not file.is_file():
        return "is missing"
    if file.suffix.lower() in _OTHER_ENDINGS:
        return f"is a {file.suffix.lower()} file; save it as .png"
    try:
        with Image.open(file) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                return "holds several pictures; save each as .png"
            deep = _sixteen_bits(opened)
            opened.load()
            picture: Image.Image = ImageOps.exif_transpose(opened)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be read ({type(error).__name__})"
    if deep or picture.mode.startswith(("I", "F")):
        return "has more than 8 bits a channel; save it as 8-bit RGB"
    if picture.mode == "CMYK":
        return "is CMYK; convert it to RGB with its colour profile"
    if min(picture.size) < _LEAST:
        return f"is only {picture.width} x {picture.height} pixels, fewer than {_LEAST} on a side"
    if picture.has_transparency_data:
        alpha: Any = picture.convert("RGBA").getchannel("A").getextrema()
        if alpha[0] < 255:  # an opaque alpha channel says nothing
            return "is transparent in places; put it on a ground of your choice"
    return picture.convert("RGB")


def _sixteen_bits(opened: Any) -> bool:
    """Whether a PNG or TIFF has 16 bits a channel, which Pillow would silently halve; known before it is loaded."""
    raw = (tile[3][0] if isinstance(tile[3], tuple) else tile[3] for tile in opened.tile)
    return opened.format in ("PNG", "TIFF") and any("16" in str(mode) for mode in raw)
