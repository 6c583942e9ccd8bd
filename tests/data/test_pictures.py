"""Picture files: what is read, what is refused and in which words."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imgrl.data.pictures import read_picture


def deep_png(file, size=16):
    """A PNG with 16 bits a channel in colour, which Pillow cannot write: header, zeros, end."""
    rows = b"".join(b"\0" + b"\x12\x34" * 3 * size for _ in range(size))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", size, size, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in [*parts, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    file.write_bytes(data)


def deep_tiff(file, side=16):
    """A TIFF of three 16-bit channels by the standard's own tables; Pillow opens it as RGB but writes none."""
    pixels = struct.pack(f"<{side * side * 3}H", *range(side * side * 3))
    short, long, depths = 3, 4, 8 + 2 + 12 * 9 + 4
    tags = [
        (256, short, 1, side),  # width
        (257, short, 1, side),  # height
        (258, short, 3, depths),  # bits a channel, three numbers
        (259, short, 1, 1),  # no compression
        (262, short, 1, 2),  # RGB
        (273, long, 1, depths + 6),  # where the pixels are
        (277, short, 1, 3),  # channels
        (278, short, 1, side),  # rows in the one strip
        (279, long, 1, len(pixels)),
    ]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    file.write_bytes(
        b"II*\0" + struct.pack("<I", 8) + table + bytes(4) + struct.pack("<3H", 16, 16, 16) + pixels
    )


def write(file, kind):
    grey = Image.new("L", (16, 16), 128)
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    clear.putpixel((3, 3), (0, 0, 0, 0))
    if kind == "cmyk":
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(file, "JPEG")
    elif kind == "alpha":
        clear.save(file)
    elif kind == "deep grey":
        Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16)).save(file)
    elif kind == "deep colour":
        deep_png(file)
    elif kind == "deep tiff":
        deep_tiff(file)
    elif kind == "small":
        Image.new("RGB", (40, 7)).save(file)
    elif kind == "text":
        file.write_text("not a picture")
    elif kind == "cut off":
        Image.effect_noise((64, 64), 50).save(file)
        file.write_bytes(file.read_bytes()[:900])
    elif kind == "pages":
        grey.save(file, format="TIFF", save_all=True, append_images=[grey])
    elif kind == "grey":
        grey.save(file)
    elif kind == "opaque":
        Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(file)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", "is missing"),
        ("text", "cannot be read (UnidentifiedImageError)"),
        ("cut off", "cannot be read (OSError)"),
        ("cmyk", "is CMYK; convert it to RGB with its colour profile"),
        ("alpha", "is transparent in places; put it on a ground of your choice"),
        ("deep grey", "has more than 8 bits a channel; save it as 8-bit RGB"),
        ("deep colour", "has more than 8 bits a channel; save it as 8-bit RGB"),
        ("deep tiff", "has more than 8 bits a channel; save it as 8-bit RGB"),
        ("pages", "holds several pictures; save each as .png"),
        ("small", "is only 40 x 7 pixels, fewer than 8 on a side"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, kind, told):
    file = tmp_path / ("p.jpg" if kind == "cmyk" else "p.png")
    write(file, kind)
    assert read_picture(file) == told


def test_kinds_that_are_refused_by_their_ending(tmp_path):
    """Pillow would read a GIF's first frame, and HEIC with a plugin; neither is what a person or every machine sees."""
    for name in ("p.gif", "P.HEIC"):
        Image.new("P", (16, 16)).save(tmp_path / name, "GIF")
        assert read_picture(tmp_path / name) == f"is a {name[1:].lower()} file; save it as .png"
    assert read_picture(tmp_path / "gone.gif") == "is missing"


@pytest.mark.parametrize("ending", ["tif", "TIFF", "jfif"])
def test_less_usual_endings_are_read(tmp_path, ending):
    image = Image.new("RGB", (16, 24), (200, 100, 50))
    image.save(tmp_path / f"p.{ending}", "JPEG" if ending == "jfif" else "TIFF")
    picture = read_picture(tmp_path / f"p.{ending}")
    assert isinstance(picture, Image.Image) and picture.mode == "RGB" and picture.size == (16, 24)
    assert picture.getpixel((5, 5)) == pytest.approx((200, 100, 50), abs=2)  # a JPEG rounds its colours


def test_grey_and_opaque_pictures_are_read(tmp_path):
    for kind, expected in (("grey", (128, 128, 128)), ("opaque", (255, 0, 0))):
        write(tmp_path / "p.png", kind)
        picture = read_picture(tmp_path / "p.png")
        assert isinstance(picture, Image.Image) and picture.mode == "RGB"
        assert picture.getpixel((5, 5)) == expected


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path):
    sideways = Image.new("RGB", (40, 20))
    sideways.paste((255, 255, 255), (0, 0, 20, 20))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    sideways.save(tmp_path / "p.png", exif=exif)
    picture = read_picture(tmp_path / "p.png")
    assert isinstance(picture, Image.Image) and picture.size == (20, 40)
    assert picture.getpixel((10, 5)) == (255, 255, 255) and picture.getpixel((10, 35)) == (0, 0, 0)
