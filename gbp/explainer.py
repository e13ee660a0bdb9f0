"""`Explainer`: load and plan once, explain many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NoReturn, TypeVar

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .attribution import Attribution, Layout
from .devices.base import CPU, all_finite, device_named
from .devices.threads import thread_count
from .errors import InputError, ModelError, OutOfMemoryError
from .graph.graph import Shape
from .importer.load import build, open_model
from .importer.proto import Model
from .importer.subgraph import Choice, Source
from .importer.weights import Weights
from .kernels.codegen.jit import CACHE_DIRECTORY, compiled, not_kept
from .limits import MAX_BYTES_PER_SAMPLE, MAX_ELEMENTS, at_least_one, computing, elements, readable_bytes
from .ops.conv.conv import check_algorithm
from .ops.quantize import QuantizeStep
from .pictures.image import Preprocess, is_array_file, read_array, read_image
from .pictures.sidecar import Sidecar, read_labels, read_sidecar
from .plan.layout import Instruction
from .plan.plan import Plan
from .rules import RULES, Rule, rule_named
from .runtime.tape import Pool, Tape, steps
from .targets import Target, resolve

T = TypeVar("T")

Picture = str | os.PathLike[str] | Image.Image
Images = Picture | Sequence[Picture] | NDArray[np.floating[Any]]

#: Image sizes that a model of open size keeps a plan for, each with its own copy of the weights.
_MAX_PLANS = 4
_CHANNEL_COUNTS = (1, 3)
#: What becomes of activations for which the papers define no rule.
ACTIVATIONS = ("gradient", "rectify")


@dataclass(frozen=True)
class _Batch:
    """Samples in the model's own layout, and what they look like."""

    x: NDArray[np.float32]
    pictures: tuple[Image.Image, ...] | None
    first: int = 0  # of the samples, among all

    def halves(self) -> tuple[_Batch, _Batch]:
        half = len(self.x) // 2

        def part(which: slice) -> _Batch:
            first = self.first + (which.start or 0)
            return _Batch(self.x[which], self.pictures and self.pictures[which], first)

        return part(slice(half)), part(slice(half, None))


class Explainer:
    """Explains the decisions of one ONNX model.  Safe to share between threads.

    `model`: a path, the bytes of a file, or a ModelProto.  `preprocess`: how images become input: a preset
    ("imagenet", "caffe", "tf", "unit", "raw"), a table, or a `Preprocess`; by default what the file
    `<model>.toml` beside the model says.  `labels`: a file of class names or a sequence; by default from the
    same file.  `output`: the tensor to explain: by default the logits of the model's only output,
    "probability" for that output itself, or a tensor's name.  `input`: the one to explain where there are
    several, and `inputs` the values of the others, {name: array}, the same for all samples.  `threads`: by
    default all cores.  `device`: "cpu", or "cuda" for a card (extra gbp[cuda]).  `activations`: what rules
    with a gradient gate do at activations for which the papers define none (Sigmoid, SiLU, …): "gradient"
    takes their true gradient, "rectify" clamps the gradient to its positive part first, as behind a
    rectifier.  `algorithm`: how convolutions are computed on the CPU: "auto" takes for each layer what costs
    least; "direct", "winograd" and "lists" (of the gradient's nonzero values) are taken wherever they can be.
    Packed for Winograd a 3×3 layer's weights take 36/9 of their size each way; "direct" spares that.
    `memory`: bytes that the activations and gradients of the samples computed together may take, by default
    160 MiB, of a card half of what is free; a larger batch is computed in slices, down to one sample and one
    target at a time however small `memory` is.  Weights, input and maps come on top, and so does what other
    threads compute; as much again may be kept for the next call.  `tf32`: on a card of compute capability 8.0
    and up convolutions multiply numbers of 11 bits: quicker, and a thousand times less exact.

    Raises `GbpError`: ModelError for a damaged model, UnsupportedError listing all that gbp does not do,
    InputError for an argument that cannot be used.
    """

    def __init__(
        self,
        model: Model,
        *,
        preprocess: Preprocess | Mapping[str, Any] | str | None = None,
        labels: str | os.PathLike[str] | Sequence[str] | None = None,
        output: str | None = None,
        input: str | None = None,
        inputs: Mapping[str, ArrayLike] | None = None,
        threads: int | None = None,
        device: str = "cpu",
        activations: str = "gradient",
        algorithm: str = "auto",
        memory: int | None = None,
        tf32: bool = False,
    ) -> None:
        check_algorithm(algorithm)
        self._algorithm = algorithm
        if activations not in ACTIVATIONS:
            raise InputError(f"activations is {activations!r}.", supported=", ".join(ACTIVATIONS))
        self._rectify = activations == "rectify"
        self._device = device_named(device)
        if self._device is not CPU and algorithm != "auto":
            raise InputError(f"algorithm is {algorithm!r} on {device!r}.", supported="'auto'")
        if tf32 and not self._device.has_tf32:
            raise InputError(
                f"tf32 is True on {device!r}.",
                supported="a card of compute capability 8.0 and up",
                hint="Leave it out to compute in float32.",
            )
        self._tf32 = tf32
        self._memory = at_least_one("memory", memory)
        self._threads = thread_count(threads)
        self._source = open_model(model, Choice(output, input, inputs or {}))
        sidecar = read_sidecar(model) if isinstance(model, (str, os.PathLike)) else Sidecar()
        self.preprocess = Preprocess.parse(preprocess) or sidecar.preprocess
        self.labels = read_labels(labels) or sidecar.labels or self._source.labels
        self._plans: dict[Shape, tuple[Plan, Pool]] = {}
        self._lock = Lock()
        self._max_fitting: int | None = None  # samples at once, where more were out of memory
        if None not in self._source.input_shape[1:]:
            self._plan(tuple(n for n in self._source.input_shape[1:] if n is not None))
            # The plan has all of it.
            self._source = replace(
                self._source, model=onnx.ModelProto(), weights=Weights(), nodes=(), given={}
            )

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The model's own input shape, batch first; None for each size that the file leaves open."""
        return self._source.input_shape

    # ----------------------------------------------------------------------------------------- running

    def prepare(self, images: Images) -> NDArray[np.float32]:
        """What the model is fed for these images: float32 (N, …) in its own input layout.

        `images` as for `explain`.  Raises InputError.
        """
        return np.concatenate([batch.x for batch in self._batches(images, None, targets=1)])

    def predict(self, images: Images) -> NDArray[np.float32]:
        """The scores of each image: float32 (N, classes), the explained tensor (logits by default).

        `images` as for `explain`.  Raises InputError.
        """

        def scores_of(batch: _Batch) -> NDArray[np.float32]:
            with self._run(batch) as tape:
                return tape.scores

        batches = self._batches(images, None, targets=1)
        return np.concatenate([scores for batch in batches for scores in self._fitting(batch, scores_of)])

    def explain(
        self,
        images: Images,
        *,
        rule: str | Rule = "guided",
        target: Target = None,
        batch_size: int | None = None,
    ) -> Attribution:
        """Explain one class, or several, of each image.

        `images`: a path, a PIL image, a list of either, or a float array (N, …) in the model's own input
        layout, taken as preprocessed, also uint8 where the model takes bytes; or paths of .npy files with a
        sample each.  `rule`: "guided", "deconvnet" or "vanilla".  `target`: None for each sample's own
        argmax; a class index; a label; "top5"; an array (N,) of indices or a list of labels, one a sample;
        (N, K) for several a sample; or one-hot (N, C).  `batch_size`: samples at a time, by default as many
        as `memory` holds, up to 32 (on a card 256); and never more than that, where the Explainer was given
        one.

        Returns an `Attribution` whose map is float32 of the input's shape, (N, K, …) for K targets.  The
        same input gives the same bits whatever else is in the batch and however many threads run.
        Raises InputError.
        """
        rule = rule_named(rule)
        maps, scores, targets = [], [], []
        pictures: list[Image.Image] = []
        count, done = _count(images), 0
        each = 5 if isinstance(target, str) and target == "top5" else 1

        finite = True

        def explained(batch: _Batch) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
            nonlocal finite
            with self._run(batch) as tape:
                self._check_labels(tape.scores.shape[1])
                chosen = resolve(target, tape.scores, self.labels, slice(done, done + len(batch.x)), count)
                gx = self._backward(tape, batch, rule, chosen.reshape(len(batch.x), -1))
                finite &= tape.is_finite
                return gx if chosen.ndim == 2 else gx[:, 0], tape.scores, chosen

        for batch in self._batches(images, batch_size, targets=each):
            plan, _ = self._plan(tuple(batch.x.shape[1:]))
            _refuse_meaningless(rule, plan)
            for some_maps, some_scores, some_targets in self._fitting(batch, explained):
                maps.append(some_maps)
                scores.append(some_scores)
                targets.append(some_targets)
                done += len(some_scores)
            pictures.extend(batch.pictures or ())
        result = Attribution(
            map=_joined(maps),
            scores=_joined(scores),
            target=_joined(targets),
            rule=rule.name,
            notes=_notes(plan, self._source, rule, self._rectify, self._tf32),
            layout=self._layout(batch.x.shape),
            labels=self.labels,
            images=tuple(pictures) or None,
            channels=self.preprocess.channels if self.preprocess else "RGB",
            head=self._source.head,
        )
        if not finite:
            raise ModelError("the map holds NaN or infinity.", hint="The network's values overflow float32.")
        return result

    def warmup(self, size: tuple[int, int] | None = None) -> int:
        """Have every kernel that this model needs, under any rule, compiled and kept on this machine.

        `size`: (H, W) where the model leaves it open; by default what preprocess says.  Returns how many
        kernels had to be compiled: none, where they were kept before.
        Raises InputError where a size is missing, or where kernels cannot be kept.
        """
        open_sizes = iter(size or (self.preprocess and self.preprocess.size) or ())
        shape = tuple(n or next(open_sizes, 0) for n in self._source.input_shape[1:])
        if 0 in shape:
            raise InputError("the model leaves the image size open.", hint="Say it: --size, or size=(H, W).")
        plan, _ = self._plan(shape)
        noise = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
        before = len(compiled)
        for instruction in plan.instructions:
            for kernel in instruction.step.kernels:
                kernel.compile()
        for rule in RULES.values():
            if plan.rectifiers or not rule.gradient_gate:
                self.explain(noise, rule=rule)
        if self._device is not CPU:  # whose dense layers have kernels for many samples
            self.explain(np.repeat(noise, 16, axis=0), rule="vanilla")
        if not_kept:
            raise InputError(
                f"kernels cannot be kept in {CACHE_DIRECTORY!r}: {not_kept[-1]}.",
                hint="Name a folder that can be written in GBP_CACHE_DIR.",
            )
        return len(compiled) - before

    def steps(
        self, x: NDArray[np.float32]
    ) -> tuple[Plan, Iterator[tuple[Instruction, Mapping[str, NDArray[np.float32]]]]]:
        """The plan for samples x (N, …), and its forward run step by step (`tape.steps`), for `verify`."""
        if self._device is not CPU:
            raise InputError("steps are looked at on the CPU alone.", hint="Leave the device out.")
        plan, _ = self._plan(tuple(x.shape[1:]))
        return plan, steps(plan, x, self._threads)

    def _run(self, batch: _Batch) -> Tape:
        plan, pool = self._plan(tuple(batch.x.shape[1:]))
        with computing():
            tape = Tape(plan, batch.x, pool, self._threads, self._device)
        if tape.not_finite.size:
            _refuse_not_finite(batch.first + int(tape.not_finite[0]))
        if not np.isfinite(tape.scores).all():
            raise ModelError(
                "the scores hold NaN or infinity.", hint="The network's values overflow float32."
            )
        return tape

    def _fitting(self, batch: _Batch, compute: Callable[[_Batch], T]) -> Iterator[T]:
        """What `compute` makes of the batch, or of its halves where the device has too little memory."""
        try:
            result = compute(batch)
        except OutOfMemoryError:
            if len(batch.x) == 1:
                raise
        else:
            yield result
            return
        # Not while the error is handled, which holds on to what was there.
        for _, pool in self._plans.values():
            pool.clear()
        self._max_fitting = len(batch.x) // 2
        for half in batch.halves():
            yield from self._fitting(half, compute)

    def _backward(
        self, tape: Tape, batch: _Batch, rule: Rule, targets: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The maps (n, K, …) for targets (n, K), as many at a time as the memory holds."""
        plan, _ = self._plan(tuple(batch.x.shape[1:]))
        nbytes = 4 * targets.shape[1] * elements(plan.input_shape)
        if nbytes > MAX_BYTES_PER_SAMPLE:
            raise InputError(
                f"the maps of one sample would take {readable_bytes(nbytes)}.",
                supported=readable_bytes(MAX_BYTES_PER_SAMPLE),
                hint="Explain fewer targets at a time.",
            )
        step = plan.max_targets(self._memory or self._device.slice_bytes, tape.n)
        with computing():
            return _joined(
                [tape.backward(rule, targets[:, k : k + step]) for k in range(0, targets.shape[1], step)],
                axis=1,
            )

    def _plan(self, shape: Shape) -> tuple[Plan, Pool]:
        """The plan for samples of this shape, made on first use."""
        with self._lock:
            if shape not in self._plans:
                batch = self._source.input_shape[0] or 1
                with computing():
                    graph = build(self._source, (batch, *shape))
                    how: dict[str, Any] = {
                        "rectify": self._rectify,
                        "device": self._device,
                        "tf32": self._tf32,
                    }
                    plan = Plan.build(graph, self._algorithm, **how)
                if len(self._plans) == _MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[shape] = plan, Pool()
            return self._plans[shape]

    def _check_labels(self, classes: int) -> None:
        if self.labels is not None and len(self.labels) != classes:
            raise InputError(
                f"there are {len(self.labels)} labels and {classes} scores.",
                hint="Some models have a background class at index 0: put a line for it.",
            )

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "an Explainer holds running threads' memory and cannot be pickled.",
            hint="Make one in each process, from the model's path.",
        )

    # ------------------------------------------------------------------------------------------ inputs

    def _batches(self, images: Images, batch_size: int | None, targets: int) -> Iterator[_Batch]:
        batch_size = at_least_one("batch_size", batch_size)
        if isinstance(images, np.ndarray):
            yield from self._array_batches(images, batch_size, targets)
            return
        pictures: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        if not pictures:
            raise InputError("there are no images.")
        if any(map(is_array_file, pictures)):
            yield from self._array_batches(self._from_array_files(pictures), batch_size, targets)
            return
        for picture in pictures:
            if not isinstance(picture, (str, os.PathLike, Image.Image)):
                raise InputError(
                    f"an image is of type {type(picture).__name__}.",
                    supported="paths and PIL images, or one float array (N, …) for all",
                )
        for part in self._slices(len(pictures), self._picture_shape(), targets, batch_size):
            yield self._from_pictures(pictures[part])

    def _from_array_files(self, paths: Sequence[Any]) -> NDArray[Any]:
        """One sample a file, which may or may not have an axis of 1 for the batch."""
        if not all(map(is_array_file, paths)):
            raise InputError(
                "some images are pictures and some arrays.", hint="Explain them one kind at a time."
            )
        rank, arrays = len(self.input_shape), list(map(read_array, paths))
        samples = [array[None] if array.ndim == rank - 1 else array for array in arrays]
        if any(sample.ndim != rank or sample.shape != (1, *samples[0].shape[1:]) for sample in samples):
            shapes = ", ".join(str(list(array.shape)) for array in arrays)
            expected = ["?" if n is None else n for n in self.input_shape[1:]]
            raise InputError(
                f"arrays of shape {shapes:.200}.", supported=f"one sample of {expected} in each file"
            )
        return np.concatenate(samples)

    def _slices(self, count: int, shape: Shape, targets: int, batch_size: int | None) -> Iterator[slice]:
        """Samples at a time: what was asked for, or a modest number, as far as the memory holds them."""
        plan, _ = self._plan(shape)
        budget = self._memory or (self._device.slice_bytes if batch_size is None else self._device.max_bytes)
        most = min(batch_size or self._device.max_slice, plan.max_samples(budget, targets))
        most = min(most, self._max_fitting or most)
        slices = -(-count // most)
        for k in range(slices):  # all about as large: what is shared by a slice is shared by as many
            yield slice(count * k // slices, count * (k + 1) // slices)

    def _array_batches(self, x: NDArray[Any], batch_size: int | None, targets: int) -> Iterator[_Batch]:
        expected = self._source.input_shape
        kinds = "fu" if self._source.dtype == "UINT8" else "f"
        if x.dtype.kind not in kinds:
            raise InputError(
                f"the array holds {x.dtype}.",
                supported="float32 in the model's input layout, already preprocessed",
                hint="For pixels pass a path or a PIL image: PIL.Image.fromarray(array).",
            )
        wanted = ["N", *("?" if n is None else n for n in expected[1:])]
        fits = x.ndim == len(expected) and all(
            n in (None, m) for n, m in zip(expected[1:], x.shape[1:], strict=True)
        )
        if not fits or 0 in x.shape:
            raise InputError(
                f"the array has shape {list(x.shape)}.", supported=f"[{', '.join(map(str, wanted))}]"
            )
        if elements(x.shape[1:]) > MAX_ELEMENTS:
            raise InputError(f"one sample of shape {list(x.shape[1:])} is too large.")
        for part in self._slices(len(x), tuple(x.shape[1:]), targets, batch_size):
            with np.errstate(over="ignore"):
                samples = np.ascontiguousarray(x[part], np.float32)
            if not self._device.looks_at_samples and not all_finite(samples):
                finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
                _refuse_not_finite(part.start + int(np.argmin(finite)))
            yield _Batch(samples, self._looks(samples), part.start)

    def _layout(self, shape: Sequence[int | None]) -> Layout:
        """What the nodes behind the input say; else NCHW, unless only the last axis can be the channels."""
        if len(shape) != 4:
            return "NC" if len(shape) == 2 else "NCL" if len(shape) == 3 else "ND"
        if self._source.channels_last is not None:
            return "NHWC" if self._source.channels_last else "NCHW"
        return "NHWC" if shape[1] not in _CHANNEL_COUNTS and shape[3] in _CHANNEL_COUNTS else "NCHW"

    def _looks(self, x: NDArray[np.float32]) -> tuple[Image.Image, ...] | None:
        """What preprocessed samples look like, where that is known."""
        layout = self._layout(x.shape)
        if layout in ("NC", "NCL"):
            return tuple(map(_series_picture, x))
        if self.preprocess is None or layout == "ND":
            return None
        planes = x.transpose(0, 3, 1, 2) if layout == "NHWC" else x
        try:
            return tuple(self.preprocess.picture(sample) for sample in planes)
        except InputError:  # such as five channels: an input that is no picture is an input all the same
            return None

    def _picture_shape(self) -> Shape:
        """The sample shape that pictures are made to fit."""
        shape = self._source.input_shape
        if len(shape) != 4:
            raise InputError(
                f"the model takes {len(shape)} axes, which is no image.", hint="Pass an array (.npy)."
            )
        layout = self._layout(shape)
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

    def _from_pictures(self, pictures: Sequence[Picture]) -> _Batch:
        shape = self._picture_shape()
        if self.preprocess is None:
            raise InputError(
                "nothing says how this model wants its images.",
                supported="preprocess 'imagenet', 'caffe', 'tf', 'unit' (0..1), 'raw' (0..255), or a table",
                hint="Give preprocess (--preprocess), or write it once into a .toml file beside the model.",
            )
        last = self._layout((1, *shape)) == "NHWC"
        channels, size = (shape[2], (shape[0], shape[1])) if last else (shape[0], (shape[1], shape[2]))
        samples, seen = [], []
        for picture in pictures:
            image = read_image(picture, channels=channels)
            samples.append(self.preprocess.apply(image, channels=channels, size=size))
            seen.append(self.preprocess.seen(image, size))
        x = np.stack(samples)
        return _Batch(np.ascontiguousarray(x.transpose(0, 2, 3, 1) if last else x), tuple(seen))


def _series_picture(x: NDArray[np.float32]) -> Image.Image:
    """The values of a series (C, L) or (W,) in grey, the least black and the largest white."""
    plane = np.atleast_2d(x).astype(np.float64)
    least, span = plane.min(), np.ptp(plane)
    return Image.fromarray(np.rint(255 * (plane - least) / (span or 1)).astype(np.uint8))


def _refuse_not_finite(sample: int) -> NoReturn:
    raise InputError(f"sample {sample} of the array holds NaN or infinity.")


def _count(images: Images) -> int:
    if isinstance(images, np.ndarray):
        return len(images) if images.ndim else 1
    return len(images) if isinstance(images, (list, tuple)) else 1


def _refuse_meaningless(rule: Rule, plan: Plan) -> None:
    if rule.gradient_gate and not plan.rectifiers:
        raise InputError(
            f"the network has no rectifier, and {rule.name!r} differs from 'vanilla' at rectifiers only.",
            supported="'vanilla' for this network",
            hint="Its activations can serve as rectifiers: activations='rectify'."
            if plan.other_activations
            else None,
        )


def _notes(plan: Plan, source: Source, rule: Rule, rectify: bool, tf32: bool) -> tuple[str, ...]:
    """What a reader of the map should know."""
    notes = []
    others = sum(
        instruction.has_mask and not instruction.clip.is_rectifier for instruction in plan.instructions
    )
    if others:
        notes.append(
            f"{others} Clip node(s) with a minimum other than 0 take their true gradient under any rule."
        )
    if plan.other_activations:
        nodes = ", ".join(f"{count} {kind}" for kind, count in plan.other_activations.items())
        how = (
            "their gradient was clamped to its positive part first (activations='rectify')"
            if rectify and rule.gradient_gate
            else "they take their true gradient"
        )
        notes.append(f"{nodes} node(s): the papers define no rule for them; {how}.")
    quantized = sum(isinstance(instruction.step, QuantizeStep) for instruction in plan.instructions)
    if quantized:
        notes.append(
            f"{quantized} QuantizeLinear node(s): the gradient passes straight through their rounding and "
            "stops where values saturate."
        )
    if tf32:
        notes.append(
            "Convolutions multiplied in TF32 (tf32=True), numbers of 11 bits: what a layer computes is off "
            "by about 2e-4 of its size, where float32 is by 2e-7, and rectifiers near 0 may tip."
        )
    if source.dtype not in ("FLOAT", "UINT8"):
        notes.append(f"The file computes in {source.dtype.lower()}, gbp in float32.")
    return tuple(notes)


def _joined(parts: list[NDArray[Any]], axis: int = 0) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def explain(
    model: Model, images: Images, *, rule: str | Rule = "guided", target: Target = None, **options: Any
) -> Attribution:
    """`Explainer(model, **options).explain(images, rule=rule, target=target)`, for a single use."""
    return Explainer(model, **options).explain(images, rule=rule, target=target)
