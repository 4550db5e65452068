"""Forms of image files that used to be read silently wrong: each as expected, or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rfpp_core.errors import UserError, quoted
from rfpp_core.images import decode


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(depth, colour, rows, *chunks):
    """A PNG of raw rows, by hand: what Pillow cannot write."""

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    side = len(rows)
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def read(data, channels=1):
    return decode.decode(data, channels, None)


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
EIGHT = np.round(RAMP / 257.0).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_their_range(form, channels):
    options = {"irreversible": False} if form == "JPEG2000" else {}
    pixels = read(encoded(Image.fromarray(RAMP), form, **options), channels)
    assert pixels.shape == (channels, 8, 8)
    assert (pixels == EIGHT).all()


def test_other_wide_greys():
    head = b"P5 8 8 1023\n"
    low = RAMP >> 6
    pgm = read(head + low.astype(">u2").tobytes())[0]
    np.testing.assert_allclose(pgm, low * (255 / 1023), atol=0.51)
    white_is_zero = encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
    assert (read(white_is_zero)[0] == 255 - EIGHT).all()
    big_endian = png(16, 0, [row.astype(">u2").tobytes() for row in RAMP])
    assert (read(big_endian)[0] == EIGHT).all()


def test_rgb_of_16_bits_keeps_its_high_byte():
    rows = [np.stack([row] * 3, 1).astype(">u2").tobytes() for row in RAMP]
    assert (read(png(16, 2, rows), 3) == RAMP >> 8).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_without_a_range_are_refused_by_name(kind):
    data = encoded(Image.fromarray(RAMP.astype(kind)), "TIFF")
    with pytest.raises(UserError, match=r"^cat/a\\nb.tif holds .*32-bit .* store it with 8 bits"):
        decode.decode(data, 1, 8, "cat/a\nb.tif")


def test_a_mode_without_conversion_is_refused_by_name():
    with pytest.raises(UserError, match=r"^an image has the mode LAB.*store it as grey or RGB"):
        read(encoded(Image.new("LAB", (8, 8)), "TIFF"))


def hidden(mode):
    """Left half fully transparent over a colour, right half opaque black."""
    image = Image.new(mode, (8, 8))
    clear = {"RGBA": (255, 0, 0, 0), "LA": (90, 0), "PA": (1, 0)}[mode]
    opaque = {"RGBA": (0, 0, 0, 255), "LA": (0, 255), "PA": (0, 255)}[mode]
    if mode == "PA":
        image.putpalette([0, 0, 0, 255, 0, 0])
    for y in range(8):
        for x in range(8):
            image.putpixel((x, y), clear if x < 4 else opaque)
    return image


def key(depth, colour, value, rows, *more):
    return png(depth, colour, rows, *more, (b"tRNS", value))


TRANSPARENT = {
    "RGBA png": encoded(hidden("RGBA")),
    "RGBA webp": encoded(hidden("RGBA"), "WEBP", lossless=True),
    "RGBA tiff": encoded(hidden("RGBA"), "TIFF"),
    "LA png": encoded(hidden("LA")),
    "palette": key(8, 3, b"\0\xff", [b"\0" * 4 + b"\1" * 4] * 8,
                   (b"PLTE", bytes([255, 0, 0, 0, 0, 0]))),
    "palette of two clear": key(8, 3, b"\0\xff\0", [b"\0\2\0\2" + b"\1" * 4] * 8,
                            (b"PLTE", bytes([255, 0, 0, 0, 0, 0, 0, 255, 0]))),
    "GIF": encoded(hidden("RGBA"), "GIF"),
    "grey key": key(8, 0, b"\0\x5a", [b"\x5a" * 4 + b"\0" * 4] * 8),
    "grey key of 1 bit": key(1, 0, b"\0\1", [b"\xf0"] * 8),
    "grey key of 4 bits": key(4, 0, b"\0\5", [b"\x55\x55\0\0"] * 8),
    "grey key of 16 bits": key(16, 0, b"\x5a\x5b", [b"\x5a\x5b" * 4 + b"\0\0" * 4] * 8),
    "RGB key": key(8, 2, b"\0\xff\0\0\0\0", [b"\xff\0\0" * 4 + b"\0\0\0" * 4] * 8),
    "RGB key of 16 bits": key(16, 2, b"\xff\x01\0\0\0\0",
                              [b"\xff\1\0\0\0\0" * 4 + b"\0" * 24] * 8),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_colours_never_show(name, channels):
    forms = decode.Forms()
    pixels = decode.decode(TRANSPARENT[name], channels, None, forms=forms)
    assert (pixels[:, :, :4] == 255).all()
    assert (pixels[:, :, 4:] == 0).all()
    assert forms.transparent == 1


def test_half_transparency_is_half_white():
    pixels = read(encoded(Image.new("RGBA", (8, 8), (0, 100, 200, 128))), 3)
    expected = np.array([0, 100, 200]) * (128 / 255) + 255 * (127 / 255)
    np.testing.assert_allclose(pixels[:, 0, 0], expected, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBX", "YCbCr"])
def test_other_modes_have_their_colours(mode):
    white = Image.new("RGB", (8, 8), "white").convert(mode)
    white.paste(Image.new("RGB", (4, 8), "black").convert(mode), (0, 0))
    pixels = read(encoded(white, "TIFF"), 3)
    assert (pixels[:, :, :4] == 0).all()
    assert (pixels[:, :, 4:] == 255).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_taken_and_counted(form):
    frames = [Image.new("L", (8, 8), level) for level in (255, 0, 128)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    forms = decode.Forms()
    assert (decode.decode(data, 1, None, forms=forms) == 255).all()
    decode.decode(encoded(frames[0], form), 1, None, forms=forms)
    assert forms.animated == 1


def test_a_phone_s_jpeg_with_a_second_picture_is_one_photo():
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    forms = decode.Forms()
    assert decode.decode(data, 1, None, forms=forms).min() > 250
    assert forms.animated == 0


def test_colour_is_told_from_grey_by_the_pixels():
    forms = decode.Forms()
    for colour in ((9, 9, 9), (9, 9, 10)):
        decode.decode(encoded(Image.new("RGB", (8, 8), colour)), 3, None, forms=forms)
    assert (forms.grey, forms.modes, forms.sizes) == (1, {"RGB": 2}, {(8, 8): 2})


def test_broken_metadata_harms_no_image(recwarn):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    assert read(encoded(Image.new("L", (8, 8), 255), "JPEG", exif=exif)).min() == 255
    assert not recwarn.list


def test_what_would_run_a_program_is_not_opened():
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    with pytest.raises(decode.CorruptImage, match="no image of a format that is read here"):
        read(encoded(Image.new("L", (8, 8)), "EPS"))


def test_messages_hold_no_addresses_and_no_control_characters():
    with pytest.raises(decode.CorruptImage) as said:
        read(b"no image")
    assert "BytesIO" not in str(said.value)
    assert quoted("a\x1b[31m\u202eb\n") == r"a\x1b[31m\u202eb\n"
    assert len(quoted("x" * 5000)) < 250
