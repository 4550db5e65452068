"""Decodes image files of any origin to pixels: uint8 (C, H, W).

Transparent pixels are composited on **white**, so a colour hidden under full transparency never
shows.  Values of 16 bits are scaled by their full range (``v / 257``), not clipped.  32-bit
integers and floats have no known range and are refused by name.  Of an animation the first frame
is taken.
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from rfpp_core.errors import UserError, quoted

# Not all that Pillow can read: its EPS reader, for one, runs Ghostscript.
FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "PCX", "SGI",
    "QOI", "TGA",
)  # fmt: skip
CONVERTIBLE = {
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
}  # fmt: skip
MAX_PIXELS = 1 << 26
BACKGROUND = "white"

logging.getLogger("PIL").addHandler(logging.NullHandler())  # errors say what is wrong

Pixels = NDArray[np.uint8]


class CorruptImage(ValueError):
    """One image that cannot be read; the message says why."""


class Form(NamedTuple):
    """The form of an image file: Pillow's mode, (width, height), and what decoding drops."""

    mode: str
    size: tuple[int, int]
    transparent: bool = False
    animated: bool = False


@dataclass
class Forms:
    """Counts of the forms of the images decoded so far; ``grey`` counts those without colour in
    their pixels."""

    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    transparent: int = 0
    animated: int = 0
    grey: int = 0

    def add(self, form: Form, pixels: Pixels) -> None:
        self.modes[form.mode] += 1
        self.sizes[form.size] += 1
        self.transparent += form.transparent
        self.animated += form.animated
        self.grey += bool((pixels == pixels[:1]).all())


@functools.cache
def suffixes() -> frozenset[str]:
    """Suffixes of those of ``FORMATS`` that this Pillow can read."""
    known = Image.registered_extensions()
    here = {suffix for suffix, form in known.items() if form in _formats()}
    return frozenset(here | {".mpo"})  # a JPEG followed by more pictures


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [form for form in FORMATS if form in Image.OPEN]


def decode(
    data: bytes,
    channels: int,
    resolution: int | None,
    name: str = "an image",
    forms: Forms | None = None,
) -> Pixels:
    """An image file's bytes as uint8 (C, H, W), square.

    Args:
        data: the file.
        channels: 1 for grey, 3 for RGB.
        resolution: side of the centre square after resizing; None leaves the image as it is.
        name: the image's name in messages.
        forms: counts the image's form.

    Raises:
        CorruptImage: if Pillow cannot read all of it, or it is unreasonably large.
        UserError: if its values have no range, or it is not square and no resolution is given.
    """
    try:
        image, form = _opened(data, "L" if channels == 1 else "RGB", name)
    except (UserError, CorruptImage):
        raise
    except UnidentifiedImageError:
        raise CorruptImage("no image of a format that is read here") from None
    except Exception as error:  # a reader may raise anything on a corrupt file
        raise CorruptImage(first_line(error)) from None
    if resolution is not None:
        side = (resolution, resolution)
        image = ImageOps.fit(image, side, Image.Resampling.LANCZOS, centering=(0.5, 0.5))
    elif image.width != image.height:
        raise UserError(f"{quoted(name)} is {image.width}x{image.height} pixels; set "
                        f"dataset.resolution to cut out squares of one size")  # fmt: skip
    array = np.asarray(image, dtype=np.uint8)
    pixels = array[None] if channels == 1 else array.transpose(2, 0, 1)
    if forms is not None:
        forms.add(form, pixels)
    return pixels


def _opened(data: bytes, mode: str, name: str) -> tuple[Image.Image, Form]:
    with (
        warnings.catch_warnings(action="ignore"),  # about metadata that is not used
        Image.open(io.BytesIO(data), formats=_formats()) as opened,
    ):
        if opened.width * opened.height > MAX_PIXELS:
            raise CorruptImage(f"{opened.width}x{opened.height} pixels are too many")
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        raw = str(opened.tile[0][3]) if opened.tile else ""  # known until it is loaded
        image = ImageOps.exif_transpose(opened)
        transparent = opened.mode[-1] in "Aa" or "transparency" in opened.info
        form = Form(opened.mode, opened.size, transparent, frames > 1)
        if opened.mode.startswith("I;16") or (opened.mode, opened.format) in WIDE:
            return Image.fromarray(_of_16_bits(image, opened)).convert(mode), form
    if form.mode in ("I", "F"):
        kind = "integers" if form.mode == "I" else "floats"
        raise UserError(f"{quoted(name)} holds signed or 32-bit {kind}, whose black and white are "
                        f"not known; store it with 8 bits, or 16 unsigned")  # fmt: skip
    if form.mode not in CONVERTIBLE:
        raise UserError(f"{quoted(name)} has the mode {form.mode}, which is not read here; store "
                        f"it as grey or RGB")  # fmt: skip
    return (_composited(image, raw) if transparent else image).convert(mode), form


WIDE = {("I", "PNG"), ("I", "PPM")}  # a mode of 32 bits for values of 0..65535


def _of_16_bits(image: Image.Image, opened: Image.Image) -> Pixels:
    """Grey values scaled by their full range; the transparent value becomes the background."""
    values = np.asarray(image)
    tags: Any = getattr(opened, "tag_v2", {})
    bits, white_is_zero = tags.get(258, (16,)), tags.get(262) == 0
    levels = np.arange(1 << 16) * (255 / (2 ** min(bits[0], 16) - 1))
    grey = levels.round().clip(0, 255).astype(np.uint8)[values]
    grey = 255 - grey if white_is_zero else grey
    key = opened.info.get("transparency")
    return np.where(values == key, np.uint8(255), grey) if isinstance(key, int) else grey


def _composited(image: Image.Image, raw: str) -> Image.Image:
    """The image on the background; a transparent value is in the file's levels, not Pillow's."""
    key = image.info.get("transparency")
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif isinstance(key, tuple) and raw.startswith("RGB;16"):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    ground = Image.new("RGBA", image.size, BACKGROUND)
    return Image.alpha_composite(ground, image.convert("RGBA"))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type; of an OSError the cause alone."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [""])[0]
    return quoted(line) or type(error).__name__
