"""Decodes an untrusted image file to an upright PIL image with 8 bits for each channel, within limits.

Pillow opens 40 formats, some of them by running other programs or by opening files inside files.  Only
formats of photographs are accepted, and the file's first bytes decide which it is.  The cost of decoding is
limited for each format by pixels and by bytes, and for all formats by the number of bytes read: headers are
parsed in Python, and a small file can refer to its own bytes any number of times.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import InputError, readable_bytes, reason_of

Mode = Literal["RGB", "L"]

# A damaged file could have Pillow say a line for each of 65 535 tags.  Filters that anybody set come first.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*ImagePlugin", append=True)

#: Bytes that an image being decoded may take; and of its file.
MAX_DECODED = 2**28
MAX_FILE = 2**27
#: Calls that read a file, and the bytes that they read in all, for each byte that it has.
_MAX_READS, _READ_OVER = 2**20, 4
#: Bytes of a JPEG before its pixels: a colour profile, a preview, notes of a camera.
_MAX_HEADER = 2**23
#: Bytes a pixel that a JPEG's coefficients take; scans that any may have; pixels times scans of others.
_COEFFICIENTS, _MANY_SCANS, _MAX_SCANNED = 6, 16, 2**30
#: Pixels converted at a time.
_STRIP = 2**20
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Limit:
    """Bytes of memory that a pixel takes while it is decoded and converted, and most bytes of a file."""

    pixel: int = 8
    file: int = MAX_FILE

    @property
    def pixels(self) -> int:
        return MAX_DECODED // self.pixel


#: The name in messages of something that has none.
UNNAMED = ("the given image", "the given array", "the PIL image")

#: The accepted formats, by Pillow's names.  A larger JPEG is decoded at a half, a quarter or an eighth of its
#: size.  Only the first bytes of a GIF are read; they hold the first frame.
FORMATS = {
    "PNG": Limit(),
    "JPEG": Limit(file=2**26),
    "GIF": Limit(file=2**21),
    "BMP": Limit(),
    "TIFF": Limit(),
    "WEBP": Limit(pixel=16, file=2**26),
    "JPEG2000": Limit(pixel=32, file=2**23),
    "PPM": Limit(),
    "HEIF": Limit(pixel=16, file=2**25),
}
#: Brands of HEIC files, of phones; pillow-heif opens them where it is installed.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
#: A JPEG with further images behind it.
_LIKE = {"MPO": "JPEG"}
SUPPORTED = "PNG, JPEG, GIF, BMP, TIFF, WebP, JPEG 2000, binary PPM, PGM and PBM, HEIC with gbp-explain[heif]"


def decode_file(
    file: BufferedReader, size: int, name: str, mode: Mode, max_pixels: int | None = None
) -> Image.Image:
    """Decode an open file.

    Parameters
    ----------
    file, size
        The file, and its bytes.
    name
        Its name in messages.
    mode
        "RGB" or "L".
    max_pixels
        The most pixels; None for the limits of its format alone.

    Raises
    ------
    InputError
        For what is no picture, is damaged, or takes too much memory.
    """
    with _refusals(name):
        start = file.read(16)
        file.seek(0)
        if start.startswith(b"GIF8"):
            source: Any = io.BytesIO(file.read(FORMATS["GIF"].file))
        else:
            source = _Metered(file, size)
        scans, has_several = 1, False
        if start.startswith(b"\xff\xd8"):
            has_several = _jpeg_has_several_scans(file)
            file.seek(0)
            scans = file.read(FORMATS["JPEG"].file).count(b"\xff\xda")
            file.seek(0)
        if re.match(rb"P[123]\s", start):
            raise InputError("it writes its pixels as text.", hint="Save it as binary PPM, or as PNG.")
        if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
            _register_heif()
        image = Image.open(source, formats=[name for name in FORMATS if name != "HEIF" or _opens_heif()])
        limit = FORMATS[_LIKE.get(image.format or "", image.format or "")]
        if size > limit.file and image.format != "GIF":
            raise InputError(
                f"it has {readable_bytes(size)}.",
                supported=f"up to {readable_bytes(limit.file)} of {image.format}",
            )
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise InputError(
                f"it has {image.width} × {image.height} pixels.",
                supported=f"up to {max_pixels / 1e6:g} million here",
                hint="Scale it down.",
            )
        _check_size(image, limit, _COEFFICIENTS if has_several else 0)
        if scans > _MANY_SCANS and scans * image.width * image.height > _MAX_SCANNED:
            raise InputError(f"it has {scans} scans.", supported=f"{_MANY_SCANS}", hint="Save it anew.")
        _check_tiles(image)
        image.load()
        result = upright(image, mode)
    return result


def _register_heif() -> None:
    """Let Pillow open HEIC files.  Raises InputError where that is not installed."""
    if _opens_heif():
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise InputError(
            "it is a HEIC photo.", hint="Install gbp-explain[heif], or save it as JPEG."
        ) from None
    register_heif_opener(thumbnails=False)


def _opens_heif() -> bool:
    return "HEIF" in Image.OPEN


def decode_image(image: Image.Image, name: str, mode: Mode) -> Image.Image:
    """Decode what the caller opened, or made.  Raises InputError naming it."""
    with _refusals(name):
        form = image.format
        if form is not None and _LIKE.get(form, form) not in FORMATS:
            raise InputError(f"it was opened from {form}.", supported=SUPPORTED, hint="Pass image.copy().")
        image.load()
        result = upright(image, mode)
    return result


def called(name: str) -> str:
    """A name as messages quote it; or what stands for one, as it is."""
    return name if name in UNNAMED else repr(name)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn all exceptions into `InputError`s.  Pillow raises many kinds for damaged files."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{called(name)}: {error.found}", supported=error.supported, hint=error.hint
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{called(name)} has more than {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels.",
            hint="Scale it down.",
        ) from error
    except UnidentifiedImageError as error:
        what = "what was given" if name in UNNAMED else repr(name)
        raise InputError(
            f"{what} is not an image, or of a format that is not opened.", supported=SUPPORTED
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{called(name)} is a damaged image: {reason_of(error)}.") from error


class _Metered(io.RawIOBase):
    """A file that refuses too many calls, and too many bytes in all: parsers in Python are slow for each."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        super().__init__()
        self._file = file
        self._calls, self._bytes = _MAX_READS, _READ_OVER * size + 2**22

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int | None = -1) -> bytes:
        data = self._file.read(-1 if size is None else size)
        self._calls -= 1
        self._bytes -= len(data)
        if self._calls < 0 or self._bytes < 0:
            raise InputError("it says the same bytes too often, or is made of too many small parts.")
        return data


def _check_size(image: Image.Image, limit: Limit, held: int) -> None:
    """Refuse an image that takes too much memory, or have a large JPEG decoded at a part of its size.

    `held`: bytes that are held for each pixel of the file, at whatever size it is decoded.
    """
    pixels = image.width * image.height
    if pixels > (Image.MAX_IMAGE_PIXELS or pixels):  # of which Pillow itself only warns
        raise Image.DecompressionBombError
    is_jpeg = image.format in ("JPEG", "MPO")
    scales = (1, 2, 4, 8) if is_jpeg else (1,)
    scale = next((n for n in scales if pixels * (held + limit.pixel / n**2) <= MAX_DECODED), None)
    if scale is None:
        max_pixels = limit.pixels if not is_jpeg else MAX_DECODED / (held + limit.pixel / 64)
        raise InputError(
            f"it has {image.width} × {image.height} pixels.",
            supported=f"up to {int(max_pixels / 1e6)} million of {image.format}",
            hint="Scale it down.",
        )
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))


def _check_tiles(image: Image.Image) -> None:
    """Refuse a TIFF with huge tiles: a decoded tile takes memory of its own."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    tile = [tags.get(tag, 0) for tag in (322, 323)]  # TileWidth, TileLength
    if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > 2**24:
        raise InputError(f"its tiles have {tile} pixels.", supported="up to 16 million")


def _jpeg_has_several_scans(file: BufferedReader) -> bool:
    """Whether the pixels come in several scans, as in a progressive JPEG: then all coefficients are held.

    Refuses a header that takes long to parse: Pillow joins all EXIF segments, and a table in there may refer
    to the whole of them thousands of times.
    """
    exif, components, progressive, at = 0, 0, False, 2
    while at < _MAX_HEADER:
        file.seek(at)
        start = file.read(10).ljust(10, b"\0")
        marker = start[1]
        if start[0] != 0xFF:  # for Pillow to refuse
            return True
        if marker == 0xDA:
            return progressive or start[4] < components
        if marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # no length
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components, progressive = start[9], progressive or marker & 3 == 2
        exif += marker == 0xE1 and start[4:] == b"Exif\0\0"
        if exif > 1:
            raise InputError("it has several EXIF segments.", hint="Save it anew.")
        at += 2 + int.from_bytes(start[2:4], "big")
    raise InputError("its header is too long.", hint="Save it anew.")


# ------------------------------------------------------------------------------------------------ convert


def upright(image: Image.Image, mode: Mode) -> Image.Image:
    """Convert to 8 bits a channel, put transparency on white, and turn as EXIF says.

    It is done a strip at a time, so that there are two images in memory and not four.
    """
    if 0 in image.size:
        raise InputError("the image has no pixels.")
    result = Image.new(mode, image.size)
    for box in _strips(*image.size):
        strip = image if box == (0, 0, *image.size) else image.crop(box)
        result.paste(_8bit(strip, mode), box)
    turned = _TURNS.get(_orientation(image))
    del image  # the caller's, or all that there is
    return result if turned is None else result.transpose(turned)


def _strips(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP // width)
    return ((0, top, width, min(height, top + rows)) for top in range(0, height, rows))


def _8bit(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _from_16bit(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if mode == "L" and image.mode != "L":
        image = image.convert("RGB")  # by way of RGB, because CMYK converts to L without its black
    return image if image.mode == mode else image.convert(mode)


def _from_16bit(image: Image.Image) -> Image.Image:
    """Mode "I;16…", or "I" holding a 16-bit file, to "L"; Pillow's own conversion clips at 255."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise InputError("32-bit pixels have no defined white.", hint="Convert the image to 8 bits.")
    if 0 < pixels.max() < 2**12:  # 8 to 12 bits in a file of 16, or a picture in which nothing is seen
        raise InputError(
            f"its brightest pixel is {pixels.max()}, nearly black where white is 65535.",
            hint="Scale its pixels to 8 bits, 0 to 255: their white may be another.",
        )
    return Image.fromarray(np.round(pixels / 257.0).astype(np.uint8))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """The orientation of the camera from EXIF, or else from XMP; 1 if both have none.

    Pillow would read the value of every tag of the table, each of which may be as large as all of it.
    """
    tags = getattr(image, "tag_v2", None)
    found = tags.get(_ORIENTATION) if tags is not None else _exif_orientation(_exif(image))
    if isinstance(found, int):
        return found
    for key in ("XML:com.adobe.xmp", "xmp"):
        text = image.info.get(key) or b""
        data = text.encode(errors="replace") if isinstance(text, str) else bytes(text)
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', data)
        if match:
            return int(match[1])
    return 1


def _exif(image: Image.Image) -> bytes:
    data = image.info.get("exif")
    if isinstance(data, bytes):
        return data
    profile = image.info.get("Raw profile type exif")  # as ImageMagick writes it into a PNG
    try:
        return bytes.fromhex("".join(profile.split("\n")[3:])) if isinstance(profile, str) else b""
    except ValueError:
        return b""


def _exif_orientation(data: bytes) -> int | None:
    """The orientation in the first table of EXIF data (TIFF 6.0, section 2)."""
    data = data.removeprefix(b"Exif\0\0")
    orders: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
    order = orders.get(data[:4])
    if order is None:
        return None
    at = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[at : at + 2], order)
    for i in range(entries):
        entry = data[at + 2 + 12 * i : at + 14 + 12 * i]
        if int.from_bytes(entry[:2], order) == _ORIENTATION:
            return int.from_bytes(entry[8:10], order)
    return None
