"""`Inputs`: images in any form that users pass become batches in the model's own layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .arguments import array_of, sizes_fit
from .errors import InputError
from .limits import MAX_ELEMENTS, is_finite, refuse_not_finite
from .pictures.image import NamedBytes, is_array_file, read_array, read_bytes, read_image
from .pictures.layout import Layout
from .pictures.lazy import Pictures
from .pictures.photo import Photo
from .pictures.preprocess import Preprocess

#: One picture: a path, the bytes of a file, a binary file object, a PIL image, or its pixels, uint8
#: (H, W, 3), (H, W, 4), or grey (H, W) or (H, W, 1).
Picture: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[np.uint8]
#: The sizes of a sample, without the batch.
Shape: TypeAlias = tuple[int, ...]
#: A function that cuts a number of samples of a shape into slices.
Slices: TypeAlias = Callable[[int, Shape], Iterator[slice]]

_CHANNEL_COUNTS = (1, 3)
_HOW_TO_SAY = (
    "Give preprocess (--preprocess), or write it once into a .toml file beside the model, as `gbp init` does."
)


@dataclass(frozen=True)
class Batch:
    """Samples of one slice.

    Parameters
    ----------
    x
        float32 (N, …) in the model's own layout.
    draw
        Makes the samples as pictures, or None where they are unknown.
    photos
        The whole photos that the samples were cut of; None where the samples came as arrays.
    """

    x: NDArray[np.float32]
    draw: Callable[[], Sequence[Image.Image] | None]
    photos: tuple[Photo, ...] | None = None

    @cached_property
    def pictures(self) -> Sequence[Image.Image] | None:
        """The samples as pictures, each made on first use; None where they are unknown."""
        return self.draw()

    def __getitem__(self, part: slice) -> Batch:
        """Some of the samples."""
        photos = self.photos and self.photos[part]
        return Batch(self.x[part], lambda: self.pictures and self.pictures[part], photos)

    def from_file(self, path: str) -> Batch:
        """The same, whose only photo is read from this file when it is drawn, and not kept."""
        return replace(self, photos=self.photos and (self.photos[0].from_file(path),))


#: Pictures, one array of samples in the model's own input layout, or samples that `Engine.ready` prepared.
Images: TypeAlias = Picture | Sequence[Picture] | NDArray[Any] | Batch


@dataclass(frozen=True)
class Inputs:
    """Prepares images for one model.

    Parameters
    ----------
    model_shape
        The shape of the model's input, batch first; None for each size that the model leaves open.
    has_batch
        Whether the file's input has a batch axis.  If not, the file takes one sample, and `model_shape` has a
        batch of 1 in front.
    channels_last
        Whether the network reads four axes as (N, H, W, C); None if nothing in the file shows it.
    preprocess
        How pictures become input, or None.
    suggestion
        The preprocessing that the model's file suggests, a sentence, or "".
    """

    model_shape: tuple[int | None, ...]
    has_batch: bool
    channels_last: bool | None
    preprocess: Preprocess | None
    suggestion: str = ""

    def count(self, images: Images) -> int:
        """How many samples the images are."""
        if isinstance(images, Batch):
            return len(images.x)
        if isinstance(images, np.ndarray) and not self._is_pixels(images):
            return len(self._samples(images)) if images.ndim else 1
        return len(images) if isinstance(images, (list, tuple)) else 1

    def batches(self, images: Images, slices: Slices, check_finite: bool = True) -> Iterator[Batch]:
        """Prepare images slice by slice.

        Parameters
        ----------
        images
            As for `Explainer.explain`.
        slices
            Cuts them.
        check_finite
            Whether to search arrays for NaN and infinity; False where a run does it (`Session.run`).

        Raises
        ------
        InputError
            For images that cannot be read or do not fit, and for arrays that hold NaN or infinity.
        """
        if isinstance(images, Batch):
            for part in slices(len(images.x), tuple(images.x.shape[1:])):
                yield images[part]
            return
        if isinstance(images, np.ndarray) and not self._is_pixels(images):
            yield from self._array_batches(self._samples(array_of(images)), slices, check_finite=check_finite)
            return
        pictures: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        pictures = [os.fsdecode(each) if isinstance(each, os.PathLike) else each for each in pictures]
        if not pictures:
            raise InputError("there are no images.")
        if any(map(is_array_file, pictures)):
            arrays = self._from_array_files(pictures)
            yield from self._array_batches(self._samples(arrays), slices, pictures)
            return
        for picture in pictures:
            if not _is_picture(picture):
                is_array = isinstance(picture, np.ndarray)
                held = f", {picture.dtype} of shape {list(picture.shape)}" if is_array else ""
                raise InputError(
                    f"an image is of type {type(picture).__name__}{held}.",
                    supported="paths, bytes, file objects, PIL images and uint8 arrays (H, W), (H, W, 1), "
                    "(H, W, 3) and (H, W, 4), or one float array (N, …) for all",
                )
        for part in slices(len(pictures), self.picture_shape()):
            yield self._from_pictures(pictures[part])

    def shape_of(self, images: Images) -> Shape:
        """The shape of one sample of these images.  Pictures are not read for it."""
        found: list[Shape] = []

        def no_slice(count: int, shape: Shape) -> Iterator[slice]:
            found.append(shape)
            return iter(())

        for _ in self.batches(images, no_slice):
            pass
        (shape,) = found
        return shape

    def layout(self, shape: Sequence[int | None]) -> Layout:
        """The meaning of the axes of an input of this shape, batch first.

        Four axes are NHWC if the nodes behind the input say so.  If they say nothing, the axes are NHWC where
        only the last axis has 1 or 3 elements, and NCHW otherwise.
        """
        if len(shape) != 4:
            return "NC" if len(shape) == 2 else "NCL" if len(shape) == 3 else "ND"
        if self.channels_last is not None:
            return "NHWC" if self.channels_last else "NCHW"
        return "NHWC" if shape[1] not in _CHANNEL_COUNTS and shape[3] in _CHANNEL_COUNTS else "NCHW"

    def _samples(self, x: NDArray[Any]) -> NDArray[Any]:
        """x as (N, …).  Where the file has no batch axis, an array of the file's shape is one sample."""
        return x[None] if not self.has_batch and x.ndim == len(self.model_shape) - 1 else x

    def _is_pixels(self, array: NDArray[Any]) -> bool:
        """Whether an array is one picture and not an array of samples."""
        if array.dtype != np.uint8 or len(self.model_shape) != 4 or array.ndim not in (2, 3):
            return False
        sample = self.model_shape[1:]
        may_be_sample = not self.has_batch and sizes_fit(array.shape, sample)
        return not may_be_sample or (None in sample and _is_picture(array))

    def _from_array_files(self, paths: Sequence[Any]) -> NDArray[Any]:
        """Read one sample from each file.  A sample may have a batch axis of 1."""
        if not all(map(is_array_file, paths)):
            raise InputError(
                "some images are pictures and some arrays.", hint="Explain them one kind at a time."
            )
        expected, samples = self.model_shape[1:], list[NDArray[Any]]()
        for path in paths:
            array = read_array(path)
            sample = array if array.ndim == len(self.model_shape) else array[None]
            if len(sample) != 1 or not sizes_fit(sample.shape[1:], expected):
                sizes = ", ".join("?" if n is None else str(n) for n in expected)
                is_open = samples and None in self.model_shape[1:]
                alike = f", all of the shape of {paths[0]!r}" if is_open else ""
                raise InputError(
                    f"the array {path!r} has shape {list(array.shape)}.",
                    supported=f"one sample of [{sizes}] in each file{alike}",
                )
            _refuse_unless_numbers(sample, f"the array {path!r}")
            expected = sample.shape[1:]  # all have the sizes of the first
            samples.append(sample)
        return np.concatenate(samples)

    def _array_batches(
        self, x: NDArray[Any], slices: Slices, files: Sequence[str] = (), check_finite: bool = True
    ) -> Iterator[Batch]:
        """Slices of an array of samples, which these files held."""
        expected = self.model_shape
        _refuse_unless_numbers(x, "the array")
        if not sizes_fit(x.shape[1:], expected[1:]) or not x.ndim or 0 in x.shape:
            wanted = ["N", *("?" if n is None else n for n in expected[1:])]
            raise InputError(
                f"the array has shape {list(x.shape)}.",
                supported=f"[{', '.join(map(str, wanted))}]",
                hint=self._hint_of_shape(x),
            )
        if x[0].size > MAX_ELEMENTS:
            raise InputError(f"one sample of shape {list(x.shape[1:])} is too large.")
        for part in slices(len(x), tuple(x.shape[1:])):
            samples = x[part]
            if samples.dtype != np.float32 or not samples.flags.c_contiguous:
                with np.errstate(over="ignore"):
                    samples = np.ascontiguousarray(samples, np.float32)
            if check_finite and not is_finite(samples):
                finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
                first = part.start + int(np.argmin(finite))
                refuse_not_finite(first, files[first] if files else "")
            yield Batch(samples, partial(self._drawn, samples))

    def _hint_of_shape(self, x: NDArray[Any]) -> str | None:
        """A hint for an array of another shape, where it is almost one of samples; else None."""
        wanted = self.model_shape[1:]
        if sizes_fit(x.shape, wanted):
            return "Put an axis for the batch in front: x[None]."
        if x.ndim == 4 and len(wanted) == 3:
            for source, target in ((-1, 1), (1, -1)):
                if sizes_fit(np.moveaxis(x, source, target).shape[1:], wanted):
                    return f"Move the axis of the channels: np.moveaxis(x, {source}, {target})."
        if len(wanted) == 3 and x.ndim in (3, 4) and x.shape[-1] in (1, 3, 4):
            return "Pictures are uint8, (H, W, 3) each; several are a list."
        return None

    def _drawn(self, x: NDArray[np.float32]) -> Sequence[Image.Image] | None:
        """Preprocessed samples as pictures; None where that is impossible."""
        layout = self.layout(x.shape)
        if layout in ("NC", "NCL"):
            return Pictures(partial(_series_picture, sample) for sample in x.copy())
        if layout == "ND" or self.preprocess is None:
            return None
        # Samples of five channels, say, can be explained, but not drawn.
        if not self.preprocess.fits(x.shape[3] if layout == "NHWC" else x.shape[1]):
            return None
        # A copy, because the caller may use the array again before they are drawn.
        planes = x.copy().transpose(0, 3, 1, 2) if layout == "NHWC" else x.copy()
        return Pictures(partial(self.preprocess.picture, sample) for sample in planes)

    def picture_shape(self) -> Shape:
        """The shape of the sample that a picture becomes."""
        shape = self.model_shape
        if len(shape) != 4:
            raise InputError(
                f"the model takes {len(shape)} axes, which is no image.", hint="Pass an array (.npy)."
            )
        layout = self.layout(shape)
        channels, size = (shape[3], shape[1:3]) if layout == "NHWC" else (shape[1], shape[2:])
        if channels not in _CHANNEL_COUNTS:
            raise InputError(
                f"the model takes {channels or 'an open number of'} channels.", hint="Pass an array."
            )
        given = self.preprocess.size if self.preprocess else None
        height, width = (known or (given or (None, None))[i] for i, known in enumerate(size))
        if height is None or width is None:
            raise InputError(
                "the model leaves the image size open.",
                hint="Say it: size in preprocess, or --size on the command line.",
            )
        return (height, width, channels) if layout == "NHWC" else (channels, height, width)

    def _from_pictures(self, pictures: Sequence[Any]) -> Batch:
        """Decode and preprocess pictures."""
        shape = self.picture_shape()
        if self.preprocess is None:
            raise InputError(
                "nothing says how this model wants its images.",
                supported="preprocess 'imagenet', 'caffe', 'tf', 'unit' (0..1), 'raw' (0..255), or a table",
                hint=" ".join((self.suggestion, _HOW_TO_SAY)).strip(),
            )
        last = self.layout((1, *shape)) == "NHWC"
        channels, size = (shape[2], (shape[0], shape[1])) if last else (shape[0], (shape[1], shape[2]))
        samples, seen, photos = [], [], []
        for given in pictures:
            picture = _kept(given)
            is_content = isinstance(picture, bytes)
            source = NamedBytes(picture, getattr(given, "name", "the given image")) if is_content else picture
            image = read_image(source, channels=channels)
            samples.append(self.preprocess.apply(image, channels=channels, size=size))
            seen.append(self.preprocess.seen(image, size))
            photos.append(Photo.of(picture, image, self.preprocess, size))
        x = np.stack(samples)
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1) if last else x)
        return Batch(x, lambda: tuple(seen), tuple(photos))


def together(batches: Sequence[Batch]) -> Batch:
    """Several batches of samples of one shape as one.  All of them have pictures, or none has."""

    def draw() -> Sequence[Image.Image] | None:
        return Pictures.joined(batch.pictures or () for batch in batches) or None

    photos = tuple(photo for batch in batches for photo in batch.photos or ())
    return Batch(np.concatenate([batch.x for batch in batches]), draw, photos or None)


def _refuse_unless_numbers(array: NDArray[Any], what: str) -> None:
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"{what} holds {array.dtype}.",
            supported="numbers in the model's input layout, already preprocessed",
            hint="For pixels pass a path, a PIL image, or uint8 pixels (H, W, 3).",
        )


def _is_picture(value: object) -> bool:
    if isinstance(value, np.ndarray):
        is_plane = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3, 4))
        return value.dtype == np.uint8 and is_plane
    return isinstance(value, (str, os.PathLike, bytes, Image.Image)) or hasattr(value, "read")


def _kept(picture: Any) -> Any:
    """A picture in a form that can be read twice: a path, bytes, or a PIL image."""
    if isinstance(picture, np.ndarray):
        pixels = array_of(picture)
        is_grey = pixels.ndim == 3 and pixels.shape[2] == 1
        # A copy, because the caller may use the array again.
        return Image.fromarray(pixels[..., 0] if is_grey else pixels).copy()
    is_file = hasattr(picture, "read") and not isinstance(picture, Image.Image)
    return read_bytes(picture) if is_file else picture


def _series_picture(x: NDArray[np.float32]) -> Image.Image:
    """A series (C, L) or (W,) as a grey picture: the smallest value is black and the largest white."""
    plane = np.atleast_2d(x).astype(np.float64)
    least, span = plane.min(), np.ptp(plane)
    return Image.fromarray(np.rint(255 * (plane - least) / (span or 1)).astype(np.uint8))
