"""`Engine`: runs one loaded model on batches of images, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, proxy

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL.Image import Image

from ..devices import Device, device_named
from ..errors import InputError, ModelError
from ..graph.head import Head
from ..graph.shapes import Shape
from ..graph.tensors import Tensor
from ..importer.hints import suggestion
from ..importer.load import settled
from ..importer.subgraph import Source
from ..importer.weights import Weights
from ..inputs import Batch, Images, Inputs, together
from ..kernels.parallel.threads import thread_count
from ..limits import at_least_one, computing
from ..ops.conv.conv import check_algorithm
from ..packed.plans import Plans
from ..pictures.later import Pictures
from ..pictures.photo import Photo
from ..pictures.preprocess import Preprocess
from ..plan.plan import Plan
from ..questions.questions import Question, Several
from ..questions.targets import Classes, Top, resolve
from ..result.attribution import Attribution
from ..result.provenance import Provenance
from ..rules import Rewrite, Rule, finished
from ..runtime.session import Kept, Session, Sessions
from .notes import depends_on_image, notes_of, refuse_meaningless

T = TypeVar("T")

#: Values of the argument `activations`.
ACTIVATIONS = ("gradient", "clamp")


@dataclass(frozen=True)
class Settings:
    """How plans are made and run.  The fields are arguments of `Explainer`, checked."""

    device: Device
    threads: int
    memory: int | None
    algorithm: str
    clamp: bool
    tf32: bool = False
    #: Whether plans are kept on this machine.
    cache: bool = True

    @classmethod
    def checked(
        cls,
        device: str,
        threads: int | None,
        memory: int | None,
        algorithm: str,
        activations: str,
        tf32: bool,
        cache: bool,
    ) -> Settings:
        """The settings for these arguments of `Explainer`.  Raises InputError."""
        check_algorithm(algorithm)
        if activations not in ACTIVATIONS:
            raise InputError(f"activations is {activations!r}.", supported=", ".join(ACTIVATIONS))
        place = device_named(device)
        if not place.is_host and algorithm != "auto":
            raise InputError(f"algorithm is {algorithm!r} on {device!r}.", supported="'auto'")
        if tf32 and not place.has_tf32:
            raise InputError(
                f"tf32 is {tf32!r} on {device!r}.",
                supported="a card of compute capability 8.0 and up",
                hint="Leave it out to compute in float32.",
            )
        size, clamp = at_least_one("memory", memory), activations == "clamp"
        keeps = bool(cache) and place.is_host
        return cls(place, thread_count(threads), size, algorithm, clamp, bool(tf32), keeps)


class _Facts:
    """The parts of a result that are no numbers; the same in each run of a plan.

    Finding it anew would take as long as a small network.  It holds no plan, which it would keep alive.
    """

    #: Most rules whose notes are remembered: a caller may make a rule for each call.
    _MOST = 16

    def __init__(self, plan: Plan, source: Source, settings: Settings, labels: tuple[str, ...] | None):
        self._source, self._settings = source, settings
        self._rules: dict[tuple[str, bool, bool, bool], tuple[tuple[str, ...], bool]] = {}
        shape = plan.output_shape
        self._classes = Classes(shape, labels)
        self.head: Head | None = None
        if source.head is not None:
            self.head = Head(source.head, shape, source.head_axes(1 + len(shape)))

    @cached_property
    def classes(self) -> Classes:
        """The classes.  Raises InputError where labels do not fit them."""
        self._classes.check_labels()
        return self._classes

    def under(self, plan: Plan, rule: Rule) -> tuple[tuple[str, ...], bool]:
        """The notes under a rule, and whether the map of a class depends on the image."""
        # Not the rule itself: its finish may have no hash, and would be kept alive.
        key = rule.name, bool(rule.forward_gate), bool(rule.gradient_gate), rule.finish is not None
        found = self._rules.get(key)
        if found is None:
            settings = self._settings
            notes = notes_of(plan, self._source, rule, settings.clamp, settings.tf32)
            found = notes, depends_on_image(plan, rule)
            if len(self._rules) >= self._MOST:
                self._rules.clear()
            self._rules[key] = found
        return found


class Engine:
    """A model and its sessions.  Threads may share an engine.

    Parameters
    ----------
    source
        The model.
    settings
        How plans are made and run.
    preprocess
        How pictures become input, or None.
    labels
        The names of the classes, or None.
    reopen
        Reads the model again.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        preprocess: Preprocess | None,
        labels: tuple[str, ...] | None,
        reopen: Callable[[], Source],
    ) -> None:
        self.settings, self.labels, self._reopen = settings, labels, reopen
        facts = source.input, source.scores, source.given, settings.algorithm, settings.clamp
        self._plans = Plans(source.weights.files if settings.cache else (), facts, settings.threads)
        source = replace(source, weights=replace(source.weights, files=()))  # a model's bytes may be freed
        #: The SHA-256 of the model's file, where it is known; "" elsewhere.
        self.digest = self._plans.digest
        self.provenance: Provenance | None = None
        self._known: WeakKeyDictionary[Plan, _Facts] = WeakKeyDictionary()
        self.inputs = Inputs(source, preprocess, not settings.device.looks_at_samples, suggestion(source))
        engine = proxy(self)  # a cycle would keep the memory of an Explainer that is gone, on a card too

        def build(shape: Shape, keep: Kept, rewrite: Rewrite | None) -> Session:
            made: Session = engine._session(shape, keep, rewrite)
            return made

        self.sessions = Sessions(build)
        if None not in source.input_shape[1:]:
            self.sessions.of(tuple(n for n in source.input_shape[1:] if n is not None))
            # The plan holds everything that runs need, so the model is freed.
            source = replace(
                self.inputs.source, model=onnx.ModelProto(), weights=Weights(), nodes=(), given={}
            )
            self.inputs = replace(self.inputs, source=source)

    def _session(self, shape: Shape, keep: Kept, rewrite: Rewrite | None) -> Session:
        known, settings = self.inputs.source, self.settings

        def build() -> tuple[Plan, bool]:
            source = self._source()
            with computing():
                source, graph = settled(source, (source.input_shape[0] or 1, *shape))
                plan = Plan.build(
                    graph,
                    settings.algorithm,
                    clamp=settings.clamp,
                    device=settings.device,
                    tf32=settings.tf32,
                    keep=keep,
                    rewrite=rewrite,
                )
            return plan, source.has_batch

        # Each choice of inner tensors, each rewrite and each size of image has a plan of its own, with all
        # weights.  One plan of a model is kept on disk.
        is_kept = not keep and rewrite is None and self.sessions.last() is None
        plan, has_batch = self._plans.of((shape, known.has_batch), build) if is_kept else build()
        if known.has_batch and not has_batch and not self._is_freed:  # which is known only now
            self.inputs = replace(self.inputs, source=known.without_batch())
        return Session(plan, settings.device, settings.threads, settings.memory)

    @property
    def _is_freed(self) -> bool:
        return not self.inputs.source.nodes

    def _source(self) -> Source:
        """The model.  Where it was freed, it is read again."""
        known = self.inputs.source
        if not self._is_freed:
            return known
        source = self._reopen()
        if source.has_batch and not known.has_batch:
            source = source.without_batch()
        return source

    def batches(
        self,
        images: Images,
        batch_size: int | None = None,
        targets: int = 1,
        keep: Kept = (),
        rewrite: Rewrite | None = None,
    ) -> Iterator[tuple[Batch, Session]]:
        """Cut images into slices; each comes with the session for its shape."""
        session: Session | None = None

        def slices(count: int, shape: Shape) -> Iterator[slice]:
            nonlocal session
            session = self.sessions.of(shape, keep, rewrite)
            return session.slices(count, targets, batch_size)

        for batch in self.inputs.batches(images, slices):
            assert session is not None  # all images of a call have one shape
            yield batch, session

    def tensors(self) -> tuple[Tensor, ...]:
        """See `Network.tensors`."""
        shape = self.inputs.source.input_shape[1:]
        if None in shape:
            last = self.sessions.last()
            if last is not None:
                return last.plan.named
            shape = self.inputs.picture_shape()
        return self.sessions.of(tuple(n for n in shape if n is not None)).plan.named

    def ready(self, images: Images) -> Batch:
        """Images as one batch, which `explain` takes: a thread may prepare what another one explains."""
        return together([batch for batch, _ in self.batches(images)])

    def scores(self, images: Images) -> NDArray[np.float32]:
        """The scores of images, float32 (N, classes)."""

        def scores_of(session: Session, x: NDArray[np.float32], first: int) -> NDArray[np.float32]:
            with session.device.turn(), computing(), session.run(x, first) as tape:
                return tape.scores

        parts: list[NDArray[np.float32]] = []
        done = 0
        for batch, session in self.batches(images):
            parts += _run(session, batch, done, scores_of)
            done += len(batch.x)
        return joined(parts)

    def explain(self, images: Images, rule: Rule, target: Question, batch_size: int | None) -> Attribution:
        """See `Explainer.explain`."""
        count, done = self.inputs.count(images), 0

        def explained(session: Session, x: NDArray[np.float32], first: int) -> tuple[NDArray[Any], ...]:
            with session.device.turn(), computing(), session.run(x, first) as tape:
                part = slice(first, first + tape.n)
                chosen = self.resolve(target, session.plan, tape.scores, part, count)
                gx = finished(rule, session.backward(tape, rule, chosen.reshape(tape.n, -1)), x)
                if not tape.is_finite:
                    hint = "The network's values overflow float32."
                    raise ModelError("the map holds NaN or infinity.", hint=hint)
                return gx if chosen.ndim == 2 else gx[:, 0], tape.scores, chosen

        parts: list[tuple[NDArray[Any], ...]] = []
        pictures: list[Sequence[Image]] = []
        photos: list[Photo] = []
        each = (
            target.k if isinstance(target, Top) else len(target.targets) if isinstance(target, Several) else 1
        )
        for batch, session in self.batches(images, batch_size, each, rewrite=rule.rewrite):
            refuse_meaningless(rule, session.plan)
            parts += _run(session, batch, done, explained)
            done += len(batch.x)
            if batch.pictures is not None:
                pictures.append(batch.pictures)
            photos.extend(batch.photos or ())
        if len(parts) == 1:
            ((maps, scores, targets),) = parts
        else:
            maps, scores, targets = map(np.concatenate, zip(*parts, strict=True))
        seen = Pictures.joined(pictures) if pictures else None, tuple(photos)
        return self.attribution(session.plan, batch.x.shape, rule, maps, scores, targets, *seen).doubted()

    def attribution(
        self,
        plan: Plan,
        shape: Shape,
        rule: Rule,
        maps: NDArray[np.float32],
        scores: NDArray[np.float32],
        targets: NDArray[np.int64],
        pictures: Sequence[Image] | None,
        photos: tuple[Photo, ...] | None,
    ) -> Attribution:
        """The result for samples of this input shape, batch first, with what is known of the model."""
        facts = self._facts(plan)
        notes, depends = facts.under(plan, rule)
        return Attribution(
            map=maps,
            scores=scores,
            target=targets,
            rule=rule.name,
            notes=notes,
            layout=self.inputs.layout(shape),
            labels=self.labels,
            images=pictures or None,
            channels=self.inputs.preprocess.channels if self.inputs.preprocess else "RGB",
            head=facts.head,
            score_shape=plan.output_shape,
            depends_on_image=depends,
            photos=photos or None,
            provenance=self.provenance,
        )

    def resolve(
        self, target: Question, plan: Plan, scores: NDArray[np.float32], part: slice, count: int
    ) -> NDArray[np.int64]:
        """The classes that a target means; see `targets.resolve`."""
        classes = self._facts(plan).classes
        if isinstance(target, Several):
            columns = [resolve(one, scores, classes, part, count) for one in target.targets]
            return np.concatenate([column.reshape(len(scores), -1) for column in columns], axis=1)
        return resolve(target, scores, classes, part, count)

    def head(self, plan: Plan) -> Head | None:
        """How the model turns scores into probabilities; None where it does not."""
        return self._facts(plan).head

    def _facts(self, plan: Plan) -> _Facts:
        facts = self._known.get(plan)
        if facts is None:
            facts = self._known[plan] = _Facts(plan, self.inputs.source, self.settings, self.labels)
        return facts


def _run(
    session: Session, batch: Batch, first: int, compute: Callable[[Session, NDArray[np.float32], int], T]
) -> list[T]:
    """Run `compute` on a batch; in parts, where memory runs out.  `first`: the index of its first sample."""
    x = batch.x
    return list(session.fitting(slice(0, len(x)), lambda part: compute(session, x[part], first + part.start)))


def joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """The arrays, joined along the batch axis."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
