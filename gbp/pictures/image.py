"""Image file → array: decode to 8-bit RGB or grey, crop as the network was trained, scale to its numbers.

file ─read_image→ PIL image ─Preprocess.apply→ float32 (C, H, W)
└Preprocess.seen→ the crop of it that the network sees
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import IO, Any, BinaryIO, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..files import open_regular
from ..limits import readable_bytes
from .decode import MAX_FILE, decode_file, decode_image

Channels = Literal["RGB", "BGR", "L"]
Resize = Literal["crop", "stretch"]

NETWORK_CHANNELS: Mapping[Channels, tuple[int, ...]] = {"RGB": (3, 1), "BGR": (3,), "L": (1,)}
"""How many input channels a network may have under each order; RGB turns to grey where it takes one."""


MAX_RESIZED = 2**25
"""Pixels that a resized image may have before the crop; a 1 × 65535 strip would ask for 4 000 000 000."""

MAX_ARRAY = 2**31
"""Bytes of an array in a file."""


# ---------------------------------------------------------------------------------------------- decode


def read_image(
    source: str | os.PathLike[str] | IO[bytes] | Image.Image,
    *,
    channels: int = 3,
    max_pixels: int | None = None,
) -> Image.Image:
    """Decode an image, turn it upright and bring it to 8 bits a channel.

    `source` is a path, a binary file object or an open PIL image; of an animation the first frame is taken.
    `channels` is 3 for mode "RGB" or 1 for mode "L".  EXIF orientation is applied, transparency is composited
    on white, palettes and CMYK are converted, 16-bit greyscale is scaled down by 257.  A JPEG of more than 33
    million pixels, or 19 million in several scans, is decoded at a half, a quarter or an eighth of its size.
    `max_pixels` is a limit on top of gbp's own, for files.

    Raises `InputError`, naming the file, when it is missing, no regular file, not an image of a format in
    `decode.FORMATS`, damaged, larger than what is said there or than `PIL.Image.MAX_IMAGE_PIXELS`, or of a
    kind whose brightness range is undefined (32-bit, float; 16-bit where
    no pixel reaches 2¹², as of cameras of 8 to 12 bits).
    """
    mode: Literal["RGB", "L"] = "L" if channels == 1 else "RGB"
    if isinstance(source, Image.Image):
        return decode_image(source, getattr(source, "filename", "") or "the PIL image", mode)
    if not isinstance(source, (str, bytes, os.PathLike)) and hasattr(source, "read"):
        name, content = str(getattr(source, "name", "the given image")), source.read(MAX_FILE + 1)
        if not isinstance(content, bytes) or len(content) > MAX_FILE:
            raise InputError(f"{name!r} holds no bytes, or more than {readable_bytes(MAX_FILE)}.")
        return decode_file(io.BufferedReader(io.BytesIO(content)), len(content), name, mode, max_pixels)
    if not isinstance(source, (str, bytes, os.PathLike)):
        raise InputError(f"an image is of type {type(source).__name__}.", supported="a path or a PIL image")
    name = os.fspath(source)
    try:
        with open_regular(name, MAX_FILE) as file:
            return decode_file(file, os.fstat(file.fileno()).st_size, name, mode, max_pixels)
    except IsADirectoryError as error:
        raise InputError(f"{name!r} is a directory, not an image.") from error
    except InputError:  # a ValueError too
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot open the image {name!r}: {reason}.") from error


def is_array_file(source: object) -> bool:
    """Whether a sample is given as an array, in an .npy file, and not as a picture."""
    return isinstance(source, (str, os.PathLike)) and os.fspath(source)[-4:].lower() == ".npy"


def read_array(source: str | os.PathLike[str] | bytes) -> NDArray[Any]:
    """The array in an .npy file, whole numbers as float32.  Raises `InputError`, naming the file.

    `source` is a path, or the bytes of the file.
    """
    name = "the given array" if isinstance(source, bytes) else os.fspath(source)
    try:
        if isinstance(source, bytes):
            array = _array(io.BytesIO(source), len(source))
        else:
            with open_regular(source, MAX_ARRAY) as file:
                array = _array(file, os.fstat(file.fileno()).st_size)
    except MemoryError:
        raise
    except Exception as error:  # the header is Python's text, on which NumPy raises what its parser does
        raise InputError(f"cannot read the array {name!r}: {error}.") from None
    return array.astype(np.float32) if array.dtype.kind in "iu" else array


def _array(file: BinaryIO, size: int) -> NDArray[Any]:
    """What the file of `size` bytes holds, once it is certain that it holds as much as its header says."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.itemsize * math.prod(shape) > size:
        raise ValueError(f"the file is shorter than {dtype} of shape {list(shape)}")
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


# ------------------------------------------------------------------------------------------ preprocess


@dataclass(frozen=True)
class Preprocess:
    """What happens to pixels before the network: y = (x · scale - mean) / std, x in 0..255.

    Parameters
    ----------
    scale
        What pixels are multiplied by; 1/255 brings them to 0..1.
    mean, std
        One number, or one for each channel in the order `channels`.
    channels
        "RGB", "BGR" or "L": how the network reads colours.
    size
        (H, W) in pixels, or None for the network's own.
    crop
        The fraction of the shorter side that is kept: the image is scaled to cover `size` / `crop`, of which
        the centre is taken.
    resize
        "crop" does that and keeps the aspect ratio; "stretch" scales the whole image to `size`.

    Raises
    ------
    InputError
        For a value that makes no sense: a std of 0, a NaN, a crop of 3.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Channels = "RGB"
    size: tuple[int, int] | None = None
    crop: float = 1.0
    resize: Resize = "crop"

    def __post_init__(self) -> None:
        _check(_finite(self.scale) and self.scale != 0, "scale", self.scale, "a number other than 0")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            good = isinstance(numbers, tuple) and len(numbers) in (1, 3) and all(map(_finite, numbers))
            _check(good, name, numbers, "1 or 3 numbers")
        _check(all(number > 0 for number in self.std), "std", self.std, "numbers above 0")
        _check(self.channels in get_args(Channels), "channels", self.channels, "'RGB', 'BGR' or 'L'")
        _check(
            self.size is None or _is_size(self.size),
            "size",
            self.size,
            "one or two positive integers, [H, W]",
        )
        _check(_finite(self.crop) and 0.01 <= self.crop <= 1, "crop", self.crop, "a number from 0.01 to 1")
        _check(self.resize in get_args(Resize), "resize", self.resize, "'crop' or 'stretch'")

    @overload
    @classmethod
    def parse(cls, value: None, base: Preprocess | None = None) -> None: ...
    @overload
    @classmethod
    def parse(
        cls, value: str | Mapping[str, Any] | Preprocess, base: Preprocess | None = None
    ) -> Preprocess: ...
    @classmethod
    def parse(
        cls, value: str | Mapping[str, Any] | Preprocess | None, base: Preprocess | None = None
    ) -> Preprocess | None:
        """Read a preset's name or a table of settings; None stays None: nothing was said.

        Parameters
        ----------
        value
            A preset's name, a `Preprocess`, None, or a table that holds any of `KEYS`.  It must hold "scale"
            or "preset" where there is no `base`, because a mean of 0.485 and one of 124 differ only in
            whether pixels run to 1 or to 255.
        base
            Where settings come from that a table without a preset leaves out; else they are identity.

        Raises
        ------
        InputError
            For an unknown preset, an unknown key or a value of the wrong type.
        """
        if value is None or isinstance(value, Preprocess):
            return value
        if isinstance(value, str):
            return _preset(value)
        if not isinstance(value, Mapping):
            raise InputError(
                f"preprocess is {value!r}.", supported="a preset's name, a table or a Preprocess"
            )
        return cls._from_table(value, base)

    @classmethod
    def _from_table(cls, table: Mapping[str, Any], base: Preprocess | None) -> Preprocess:
        settings = dict(table)
        unknown = sorted(str(key) for key in settings if key not in KEYS)
        if unknown:
            raise InputError(
                f"unknown preprocess key {', '.join(map(repr, unknown))}.", supported=", ".join(KEYS)
            )
        if "preset" in settings:
            base = _preset(settings.pop("preset"))
        elif base is None and "scale" not in settings:
            presets = ", ".join(map(repr, PRESETS))
            raise InputError("preprocess gives neither a preset nor a scale.", hint=f"Presets: {presets}.")
        if "bgr" in settings:
            bgr = settings.pop("bgr")
            _check(isinstance(bgr, bool), "bgr", bgr, "true or false")
            _check("channels" not in settings, "bgr", bgr, "either bgr or channels")
            settings["channels"] = "BGR" if bgr else "RGB"
        if settings.get("resize") == "stretch":
            _check("crop" not in settings, "crop", settings.get("crop"), "no crop where resize is 'stretch'")
        for key in {"mean", "std", "size"} & settings.keys():
            settings[key] = _tuple(settings[key], repeat=2 if key == "size" else 1)
        return replace(base or cls(), **settings)

    def seen(self, image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
        """Return what the network sees of `image`: the resized centre crop of `size` = (H, W), same mode.

        Bilinear, with torchvision's arithmetic for `Resize` then `CenterCrop`, to the pixel.

        Parameters
        ----------
        image
            Of any size.
        size
            (H, W) of the network's input; None where the preprocessing says it.

        Raises
        ------
        InputError
            Where neither the caller nor the preprocessing gives a size, or both differ.
        """
        height, width = self._size(size)
        if self.resize == "stretch":
            return image.resize((width, height), Image.Resampling.BILINEAR)
        box_w, box_h = round(width / self.crop), round(height / self.crop)
        if image.width * box_h <= image.height * box_w:  # relatively narrower than the box
            resized = (box_w, box_w * image.height // image.width)
        else:
            resized = (box_h * image.width // image.height, box_h)
        if resized[0] * resized[1] > MAX_RESIZED:
            raise InputError(f"an image of {image.width} × {image.height} pixels is too narrow to crop.")
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        scaled = image.resize(resized, Image.Resampling.BILINEAR)
        return scaled.crop((left, top, left + width, top + height))

    def apply(
        self, image: Image.Image, *, channels: int, size: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Turn a decoded image into the network's input, float32 (channels, H, W).

        Parameters
        ----------
        image
            As `read_image` returns it.
        channels
            1 or 3.
        size
            As for `seen`.

        Raises
        ------
        InputError
            Where the channel order, the mean or the std does not fit, and as `seen`.
        """
        mean, std = self._statistics(channels)
        mode: Literal["RGB", "L"] = "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = read_image(image, channels=channels)
        pixels = np.asarray(self.seen(image, size), dtype=np.float64).reshape(*self._size(size), channels)
        if self.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        y = (pixels * self.scale - mean) / std
        return np.ascontiguousarray(y.transpose(2, 0, 1), dtype=np.float32)

    def picture(self, array: NDArray[Any]) -> Image.Image:
        """Undo `apply`: the 8-bit picture, RGB or L, clipped to what 8 bits hold.

        Parameters
        ----------
        array
            (C, H, W), C = 1 or 3.

        Raises
        ------
        InputError
            For another shape, or for NaN and infinity.
        """
        if array.ndim != 3 or array.shape[0] not in (1, 3):
            raise InputError(f"an array of shape {array.shape} is no picture.", supported="(1 or 3, H, W)")
        if not np.isfinite(array).all():
            raise InputError("the array holds NaN or infinity.")
        mean, std = self._statistics(array.shape[0])
        x = (array.transpose(1, 2, 0).astype(np.float64) * std + mean) / self.scale
        pixels = np.round(np.clip(x, 0, 255)).astype(np.uint8)
        if self.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if array.shape[0] == 1 else pixels))

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        chosen = size or self.size
        if chosen is None:
            raise InputError("the network fixes no input size.", hint="Give preprocess a size, [H, W].")
        if self.size is not None and chosen != self.size:
            raise InputError(f"preprocess asks for size {self.size}, the network takes {size}.")
        return chosen

    def _statistics(self, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and std as arrays (1,) or (C,), once it is certain that they fit C channels."""
        if channels not in NETWORK_CHANNELS[self.channels]:
            raise InputError(f"the network takes {channels} channels, preprocess makes {self.channels}.")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise InputError(
                    f"preprocess has {len(numbers)} numbers in {name}, the network {channels} channel."
                )
        return np.array(self.mean), np.array(self.std)


def _preset(name: object) -> Preprocess:
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"unknown preprocess preset {name!r}.", supported=", ".join(PRESETS))
    return PRESETS[name]


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise InputError(f"preprocess {name} is {value!r}, wanted {wanted}.")


def _finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not value <= -1e300 and value < 1e300


def _is_size(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in value)
    )


def _tuple(value: Any, repeat: int) -> Any:
    """A list as a tuple, one number as a tuple of `repeat`; anything else is left for `_check` to refuse."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(value.tolist() if isinstance(value, np.ndarray) else value)
    return (value,) * repeat


KEYS = ("preset", *(field.name for field in fields(Preprocess)), "bgr")
"""What a preprocess table may hold."""

PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=0.875),
    "caffe": Preprocess(1.0, (103.939, 116.779, 123.68), channels="BGR", crop=0.875),
    "tf": Preprocess(1 / 127.5, (1.0,), crop=0.875),
    "unit": Preprocess(1 / 255),
    "raw": Preprocess(),
}
"""Whose: torchvision and timm; Caffe, Keras' VGG and ResNet; TF-slim, Keras' MobileNet; 0..1; 0..255."""
