"""Image → array: crop or scale it as the network was trained, and bring it to the network's numbers.

file ─read_image→ PIL image ─Preprocess.apply→ float32 (C, H, W)
                      └─Preprocess.seen→ the part of it that the network sees
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, counted
from .image import read_image

ChannelOrder = Literal["RGB", "BGR", "L"]
Resize = Literal["crop", "stretch", "fit"]

#: How many input channels a network may have under each order; RGB turns to grey where it takes one.
NETWORK_CHANNELS: Mapping[ChannelOrder, tuple[int, ...]] = {"RGB": (3, 1), "BGR": (3,), "L": (1,)}
#: Pixels that a resized image may have before the crop; a 1 × 65535 strip would ask for 4 000 000 000.
MAX_RESIZED = 2**25
#: The fraction that the crop "auto" keeps: 224 of 256, as ImageNet's networks are measured.
AUTO_CROP = 0.875
#: Sides of an input below which "auto" crops nothing: such networks are trained on whole images.
SMALL = 64
_FOR_GREY = "For grey pictures give mean and std of one number each, or a preset: unit, raw or tf."


@dataclass(frozen=True)
class Window:
    """The network's input as a part of a photo.

    Parameters
    ----------
    resized
        (width, height) to which the photo is scaled.
    left, top
        The input's corner in the scaled photo; negative where the photo is padded.
    size
        (width, height) of the input.
    """

    resized: tuple[int, int]
    left: int
    top: int
    size: tuple[int, int]

    def box(self, photo: tuple[int, int]) -> tuple[float, float, float, float]:
        """The input's left, top, right and bottom in pixels of the photo.

        Parameters
        ----------
        photo
            (width, height) of the photo.
        """
        across, down = (side / scaled for side, scaled in zip(photo, self.resized, strict=True))
        right, bottom = self.left + self.size[0], self.top + self.size[1]
        return self.left * across, self.top * down, right * across, bottom * down


@dataclass(frozen=True)
class Preprocess:
    """The change of pixels before the network: y = (x · scale - mean) / std, x in 0..255.

    Parameters
    ----------
    scale
        The factor of pixels; 1/255 brings them to 0..1.
    mean, std
        One number, or one for each channel in the order `channels`.
    channels
        "RGB", "BGR" or "L": how the network reads colours.
    size
        (H, W) in pixels, or None for the network's own.
    crop
        The fraction of the shorter side that is kept: the image is scaled to cover `size` / `crop`, of which
        the centre is taken.  "auto" is 0.875; but 1 where the image has the network's size already, and
        where the network's input has a side under 64 pixels.
    resize
        "crop" does that and keeps the aspect ratio; "stretch" scales the whole image to `size`; "fit" scales
        it to be within `size`, and pads it with the mean.

    Raises
    ------
    InputError
        For a value that makes no sense: a std of 0, a NaN, a crop of 3.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: ChannelOrder = "RGB"
    size: tuple[int, int] | None = None
    crop: float | Literal["auto"] = 1.0
    resize: Resize = "crop"

    def __post_init__(self) -> None:
        _check(_finite(self.scale) and self.scale != 0, "scale", self.scale, "a number other than 0")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            good = isinstance(numbers, tuple) and len(numbers) in (1, 3) and all(map(_finite, numbers))
            _check(good, name, numbers, "1 or 3 numbers")
        _check(all(number > 0 for number in self.std), "std", self.std, "numbers above 0")
        _check(self.channels in get_args(ChannelOrder), "channels", self.channels, "'RGB', 'BGR' or 'L'")
        _check(
            self.size is None or _is_size(self.size),
            "size",
            self.size,
            "one or two positive integers, [H, W]",
        )
        good = self.crop == "auto" or (_finite(self.crop) and 0.01 <= float(self.crop) <= 1)
        _check(good, "crop", self.crop, "a number from 0.01 to 1, or 'auto'")
        _check(self.resize in get_args(Resize), "resize", self.resize, "'crop', 'stretch' or 'fit'")

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
        """Read a preset's name or a table of settings.  None stays None.

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
        if settings.get("resize") in ("stretch", "fit"):
            how = f"no crop where resize is {settings['resize']!r}"
            _check("crop" not in settings, "crop", settings.get("crop"), how)
        for key in {"mean", "std", "size"} & settings.keys():
            settings[key] = _tuple(settings[key], repeat=2 if key == "size" else 1)
        return replace(base or cls(), **settings)

    def window(self, photo: tuple[int, int], size: tuple[int, int] | None = None) -> Window:
        """The network's input as a part of a photo.

        To the pixel, it is that of torchvision's `Resize` and `CenterCrop`.

        Parameters
        ----------
        photo
            (width, height) of the photo.
        size
            (H, W) of the network's input; None where the preprocessing says it.

        Raises
        ------
        InputError
            Where neither the caller nor the preprocessing gives a size, or both differ; and for a photo too
            narrow to crop.
        """
        height, width = self._size(size)
        photo_w, photo_h = photo
        if self.resize == "stretch":
            return Window((width, height), 0, 0, (width, height))
        keep = self._kept(photo, (width, height)) if self.resize == "crop" else 1.0
        box_w, box_h = round(width / keep), round(height / keep)
        by_width = photo_w * box_h <= photo_h * box_w  # whether the photo is narrower than the box
        if by_width == (self.resize == "crop"):
            resized = (box_w, max(1, box_w * photo_h // photo_w))
        else:
            resized = (max(1, box_h * photo_w // photo_h), box_h)
        if resized[0] * resized[1] > MAX_RESIZED:
            raise InputError(f"an image of {photo_w} × {photo_h} pixels is too narrow to crop.")
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        return Window(resized, left, top, (width, height))

    def _kept(self, photo: tuple[int, int], size: tuple[int, int]) -> float:
        """The fraction that is kept of a photo, for an input of this (width, height)."""
        if self.crop != "auto":
            return self.crop
        return 1.0 if photo == size or min(size) < SMALL else AUTO_CROP

    def seen(self, image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
        """Return what the network sees of `image`, of `size` = (H, W) and the same mode.

        Resized bilinearly, as torchvision does.

        Parameters
        ----------
        image
            A picture of any size.
        size
            As for `window`.

        Raises
        ------
        InputError
            As `window`.
        """
        window = self.window(image.size, size)
        scaled = image.resize(window.resized, Image.Resampling.BILINEAR)
        left, top, (width, height) = window.left, window.top, window.size
        if left >= 0 and top >= 0:
            return scaled.crop((left, top, left + width, top + height))
        padded = Image.new(image.mode, (width, height), self._padding(image.mode))
        padded.paste(scaled, (-left, -top))
        return padded

    def _padding(self, mode: str) -> tuple[int, ...] | int:
        """The colour that becomes 0, the mean, as far as 8 bits hold it."""
        mean = [min(255, max(0, round(number / self.scale))) for number in self.mean]
        if self.channels == "BGR":
            mean = mean[::-1]
        return round(sum(mean) / len(mean)) if mode == "L" else tuple(mean if len(mean) == 3 else mean * 3)

    def to_dict(self) -> dict[str, Any]:
        """The settings in JSON's types."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

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

    def fits(self, channels: int) -> bool:
        """Whether samples of so many channels are pictures that this preprocessing makes.

        Parameters
        ----------
        channels
            The size of a sample's axis of channels.
        """
        is_known = channels in (1, 3) and channels in NETWORK_CHANNELS[self.channels]
        return is_known and all(len(numbers) in (1, channels) for numbers in (self.mean, self.std))

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
        factor, offset = np.broadcast_arrays(std / self.scale, mean / self.scale)
        x = array * factor.reshape(-1, 1, 1).astype(np.float32)
        x += offset.reshape(-1, 1, 1).astype(np.float32)
        pixels = np.rint(np.clip(x, 0, 255, out=x), out=x).astype(np.uint8)
        if self.channels == "BGR":
            pixels = pixels[::-1]
        return Image.fromarray(
            pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        )

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        chosen = size or self.size
        if chosen is None:
            raise InputError("the network fixes no input size.", hint="Give preprocess a size, [H, W].")
        if self.size is not None and chosen != self.size:
            found = f"preprocess asks for size {self.size}, the network takes {size}."
            raise InputError(found, hint="Leave the size out: pictures are scaled to the network's.")
        return chosen

    def _statistics(self, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and std as arrays (1,) or (C,), once it is certain that they fit C channels."""
        if channels not in NETWORK_CHANNELS[self.channels]:
            found = f"the network takes {counted(channels, 'channel')}, preprocess makes {self.channels}."
            raise InputError(found, hint=_FOR_GREY if channels == 1 else "Give channels: RGB or BGR.")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise InputError(
                    f"preprocess has {len(numbers)} numbers in {name}, the network {channels} channel.",
                    hint=_FOR_GREY,
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


#: The keys of a table of settings.
KEYS = ("preset", *(field.name for field in fields(Preprocess)), "bgr")

#: "imagenet": torchvision and timm.  "caffe": Caffe, and VGG and ResNet of Keras.  "tf": TF-slim, and
#: MobileNet of Keras.  "unit": pixels from 0 to 1.  "raw": pixels from 0 to 255.
PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop="auto"),
    "caffe": Preprocess(1.0, (103.939, 116.779, 123.68), channels="BGR", crop="auto"),
    "tf": Preprocess(1 / 127.5, (1.0,), crop="auto"),
    "unit": Preprocess(1 / 255),
    "raw": Preprocess(),
}
