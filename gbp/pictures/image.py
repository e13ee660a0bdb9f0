"""Reads files of images, as 8-bit RGB or grey, and of arrays."""

from __future__ import annotations

import io
import math
import os
from typing import IO, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, readable_bytes, reason_of
from ..files import hint_of_address, open_regular
from .decode import MAX_FILE, UNNAMED, called, decode_file, decode_image

#: Bytes of an array in a file.
MAX_ARRAY = 2**31


def read_image(
    source: str | os.PathLike[str] | IO[bytes] | Image.Image,
    *,
    channels: int = 3,
    max_pixels: int | None = None,
) -> Image.Image:
    """Decode an image, turn it upright and bring it to 8 bits a channel.

    EXIF orientation is applied, transparency is composited on white, palettes and CMYK are converted, 16-bit
    greyscale is scaled down by 257.  A JPEG of more than 33 million pixels, or 19 million in several scans,
    is decoded at a half, a quarter or an eighth of its size.

    Parameters
    ----------
    source
        A path, a binary file object or an open PIL image.  The first frame of an animation is taken.
    channels
        3 for mode "RGB", 1 for mode "L".
    max_pixels
        A limit on top of gbp's own, for files.

    Raises
    ------
    InputError
        For a file that is missing, no regular file, not an image of a format in `decode.FORMATS`, damaged, or
        larger than what is said there or than `PIL.Image.MAX_IMAGE_PIXELS`; and for a kind of image whose
        brightness range is undefined: 32-bit, float, and 16-bit where no pixel reaches 2¹², as of cameras of
        8 to 12 bits.  The message names the file.
    """
    mode: Literal["RGB", "L"] = "L" if channels == 1 else "RGB"
    if isinstance(source, Image.Image):
        return decode_image(source, getattr(source, "filename", "") or "the PIL image", mode)
    if not isinstance(source, (str, bytes, os.PathLike)) and hasattr(source, "read"):
        name, content = str(getattr(source, "name", "the given image")), read_bytes(source)
        return decode_file(io.BufferedReader(io.BytesIO(content)), len(content), name, mode, max_pixels)
    if not isinstance(source, (str, bytes, os.PathLike)):
        raise InputError(f"an image is of type {type(source).__name__}.", supported="a path or a PIL image")
    name = os.fsdecode(source)
    try:
        with open_regular(name, MAX_FILE) as file:
            return decode_file(file, os.fstat(file.fileno()).st_size, name, mode, max_pixels)
    except IsADirectoryError as error:
        raise InputError(f"{name!r} is a directory, not an image.") from error
    except InputError:  # a ValueError too
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        hint = hint_of_address(name)
        raise InputError(f"cannot open the image {name!r}: {reason_of(error)}.", hint=hint) from error


def read_bytes(source: IO[bytes]) -> bytes:
    """All bytes of a file object that holds an image.  Raises `InputError` if they are too many, or none."""
    name = called(str(getattr(source, "name", "the given image")))
    try:
        content = source.read(MAX_FILE + 1)
    except Exception as error:  # what a caller's object raises: it is closed, say, or opened as text
        raise InputError(f"cannot read {name}: {reason_of(error)}.", hint="Open it with 'rb'.") from error
    if not isinstance(content, bytes) or len(content) > MAX_FILE:
        raise InputError(f"{name} holds no bytes, or more than {readable_bytes(MAX_FILE)}.")
    return content


class NamedBytes(io.BytesIO):
    """The bytes of a file, with its name for messages."""

    def __init__(self, content: bytes, name: object) -> None:
        super().__init__(content)
        self.name = str(name)


def is_array_file(source: object) -> bool:
    """Whether a sample is given as an array, in an .npy file, and not as a picture."""
    return isinstance(source, (str, os.PathLike)) and os.fsdecode(source)[-4:].lower() == ".npy"


def content_of(path: str) -> bytes:
    """The bytes of the file of a picture or an array.  Raises `InputError` if it cannot be opened."""
    try:
        with open_regular(path, MAX_ARRAY if is_array_file(path) else MAX_FILE) as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        hint = hint_of_address(path)
        raise InputError(f"cannot open {path!r}: {reason_of(error)}.", hint=hint) from error


def read_array(
    source: str | os.PathLike[str] | bytes, name: str | os.PathLike[str] = "the given array"
) -> NDArray[Any]:
    """The array in an .npy file, whole numbers as float32.  Raises `InputError`, naming the file.

    `source` is a path, or the bytes of the file that has this name.
    """
    name = os.fsdecode(name if isinstance(source, bytes) else source)
    try:
        if isinstance(source, bytes):
            array = _array(io.BytesIO(source), len(source))
        else:
            with open_regular(source, MAX_ARRAY) as file:
                array = _array(file, os.fstat(file.fileno()).st_size)
    except MemoryError:
        raise
    except Exception as error:  # the header is Python's text, on which NumPy raises what its parser does
        what = name if name in UNNAMED else f"the array {name!r}"
        hint = hint_of_address(name)
        raise InputError(f"cannot read {what}: {reason_of(error)}.", hint=hint) from None
    return array.astype(np.float32) if array.dtype.kind in "iu" else array


def read_sample(content: bytes, rank: int, name: str | os.PathLike[str] = "the given array") -> NDArray[Any]:
    """The one sample in an .npy file, as an array (1, …).

    Parameters
    ----------
    content
        The bytes of the file.
    rank
        The axes of the model's input.  The file may leave out the first.
    name
        The file's name, for messages.

    Raises
    ------
    InputError
        If the file cannot be read or holds several samples.  Whoever takes the array checks the other axes.
    """
    array = read_array(content, name)
    if array.ndim == rank and len(array) != 1:
        raise InputError(f"{called(os.fsdecode(name))} holds {len(array)} samples.", supported="one")
    return array[None] if array.ndim == rank - 1 else array


def _array(file: BinaryIO, size: int) -> NDArray[Any]:
    """The array in a file of `size` bytes, after a check that the file holds as much as its header says."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.itemsize * math.prod(shape) > size:
        raise ValueError(f"the file is shorter than {dtype} of shape {list(shape)}")
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
