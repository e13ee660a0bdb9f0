"""`Engine`: runs one loaded model on batches of images, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, proxy

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL.Image import Image

from ..arguments import at_least_one
from ..errors import InputError, ModelError, calling
from ..graph.shapes import Shape
from ..graph.tensors import Tensor
from ..importer.batch_axis import settled
from ..importer.hints import suggestion
from ..importer.load import open_model
from ..importer.proto import Model
from ..importer.reader import Reader
from ..importer.subgraph import Choice, Source
from ..importer.weights import Weights
from ..inputs import Batch, Images, Inputs, together
from ..kernels.codegen.gate import Gate
from ..limits import computing, is_finite
from ..packed.plans import Plans
from ..pictures.lazy import Pictures
from ..pictures.photo import Photo
from ..pictures.preprocess import Preprocess
from ..plan.plan import Plan, Rewrite
from ..questions.head import Head
from ..questions.questions import Question, Several
from ..questions.targets import Top, resolve
from ..result.attribution import Attribution
from ..result.doubts import doubted
from ..result.provenance import Provenance
from ..rules import Rule
from ..runtime.garbage import collected_later
from ..runtime.session import Session
from ..runtime.sessions import Kept, Sessions
from .facts import Facts
from .notes import refuse_meaningless, unprepared
from .settings import Settings

T = TypeVar("T")

#: The two gates of a rule → its gate, as kernels take it.
GATES = {(forward, gradient): Gate(forward, gradient) for forward in (0, 1) for gradient in (0, 1)}


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
    reader
        Reads the model again, for a plan that is built after the model was freed.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        preprocess: Preprocess | None,
        labels: tuple[str, ...] | None,
        reader: Reader,
    ) -> None:
        self.settings, self.labels, self._reader = settings, labels, reader
        depends_on = source.input, source.scores, source.given, settings.algorithm, settings.clamp
        self._plans = Plans(source.weights.files if settings.cache else (), depends_on, settings.threads)
        source = replace(source, weights=replace(source.weights, files=()))  # a model's bytes may be freed
        #: The SHA-256 of the model's file, where it is known; "" elsewhere.
        self.digest = self._plans.digest
        #: `Explainer` sets it: it knows the arguments.
        self.provenance: Provenance | None = None
        self._facts_of: WeakKeyDictionary[Plan, Facts] = WeakKeyDictionary()
        #: The model.  Its nodes and weights are freed where the plan of its only shape is built.
        self.source = source
        self.inputs = Inputs(
            source.input_shape,
            source.has_batch,
            source.channels_last,
            preprocess,
            suggestion(source),
        )
        engine = proxy(self)  # a cycle would keep the memory of an Explainer that is gone, on a card too

        def build(shape: Shape, keep: Kept, rewrite: Rewrite | None) -> Session:
            made: Session = engine._session(shape, keep, rewrite)
            return made

        self.sessions = Sessions(build)
        if None not in source.input_shape[1:]:
            self.sessions.of(_sizes(source.input_shape[1:]))
            # The plan holds everything that runs need.
            self.source = replace(self.source, model=onnx.ModelProto(), weights=Weights(), nodes=(), given={})

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the model was read from; none for bytes and a ModelProto."""
        return tuple(store.file for store in self._reader.files if isinstance(store.file, Path))

    def explain(self, images: Images, rule: Rule, target: Question, batch_size: int | None) -> Attribution:
        """See `Explainer.explain`, whose rule and question are resolved here already."""
        batch_size = at_least_one("batch_size", batch_size)
        count, done = self.inputs.count(images), 0
        gate = GATES[rule.forward_gate, rule.gradient_gate]

        def explained(session: Session, x: NDArray[np.float32], offset: int) -> tuple[NDArray[Any], ...]:
            with session.device.turn(), computing(), session.run(x, offset) as tape:
                part = slice(offset, offset + tape.n)
                classes = self.resolve(target, session.plan, tape.scores, part, count)
                maps = finished(rule, session.backward(tape, gate, classes.reshape(tape.n, -1)), x)
                if not tape.is_finite:
                    hint = "The network's values overflow float32."
                    raise ModelError("the map holds NaN or infinity.", hint=hint)
                return maps if classes.ndim == 2 else maps[:, 0], tape.scores, classes

        targets = (
            target.k if isinstance(target, Top) else len(target.targets) if isinstance(target, Several) else 1
        )
        parts: list[tuple[NDArray[Any], ...]] = []
        pictures: list[Sequence[Image]] = []
        photos: list[Photo] = []
        batches = self.batches(
            images, batch_size, targets, rewrite=rule.rewrite, single_pass=True, check_finite=False
        )
        for batch, session in batches:
            refuse_meaningless(rule, session.plan)
            if batch.pictures is not None:  # they may copy the samples, which caches hold now
                pictures.append(batch.pictures)
            photos.extend(batch.photos or ())
            parts += _run(session, batch.x, done, explained)
            done += len(batch.x)
        maps, scores, classes = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        seen = Pictures.joined(pictures) if pictures else None
        return doubted(
            self.attribution(session.plan, batch.x, rule, maps, scores, classes, seen, tuple(photos))
        )

    def scores(self, images: Images) -> NDArray[np.float32]:
        """The scores of images, float32 (N, classes)."""

        def computed(session: Session, x: NDArray[np.float32], offset: int) -> NDArray[np.float32]:
            with session.device.turn(), computing(), session.run(x, offset) as tape:
                return tape.scores

        parts: list[NDArray[np.float32]] = []
        done = 0
        for batch, session in self.batches(images, single_pass=True, check_finite=False):
            parts += _run(session, batch.x, done, computed)
            done += len(batch.x)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def ready(self, images: Images) -> Batch:
        """Images as one batch, which `explain` takes: a thread may prepare what another one explains."""
        return together([batch for batch, _ in self.batches(images)])

    def batches(
        self,
        images: Images,
        batch_size: int | None = None,
        targets: int = 1,
        keep: Kept = (),
        rewrite: Rewrite | None = None,
        single_pass: bool = False,
        check_finite: bool = True,
    ) -> Iterator[tuple[Batch, Session]]:
        """Cut images into slices; each comes with the session for its shape.

        Parameters
        ----------
        images, batch_size
            As for `Explainer.explain`.
        targets
            Targets for each sample.
        keep, rewrite
            As for `Plan.build`.
        single_pass
            Whether `Session.run` takes each slice as it comes, once; see `Session.slices`.
        check_finite
            Whether to search arrays for NaN and infinity; False where `Session.run` does it.
        """
        session: Session | None = None

        def slices(count: int, shape: Shape) -> Iterator[slice]:
            nonlocal session
            session = self.sessions.of(shape, keep, rewrite)
            return session.slices(count, targets, batch_size, single_pass)

        for batch in self.inputs.batches(images, slices, check_finite=check_finite):
            assert session is not None  # all images of a call have one shape
            yield batch, session

    def tensors(self, images: Images | None = None) -> tuple[Tensor, ...]:
        """See `Network.tensors`, and `Network.tensors_for`."""
        shape = self.source.input_shape[1:]
        if None in shape and images is not None:
            shape = self.inputs.shape_of(images)
        elif None in shape:
            last = self.sessions.last()
            if last is not None:
                return last.plan.named
            shape = self.inputs.picture_shape()
        return self.sessions.of(_sizes(shape)).plan.named

    def resolve(
        self, target: Question, plan: Plan, scores: NDArray[np.float32], part: slice, count: int
    ) -> NDArray[np.int64]:
        """The classes that a target means, int64 (n,) or (n, K).

        Parameters
        ----------
        target
            As for `Explainer.explain`.
        plan
            The plan that made the scores.
        scores, part, count
            As for `targets.resolve`.
        """
        classes = self._facts(plan).classes
        if isinstance(target, Several):
            columns = [resolve(one, scores, classes, part, count) for one in target.targets]
            return np.concatenate([column.reshape(len(scores), -1) for column in columns], axis=1)
        return resolve(target, scores, classes, part, count)

    def head(self, plan: Plan) -> Head | None:
        """How the model turns scores into probabilities; None where it does not."""
        return self._facts(plan).head

    def attribution(
        self,
        plan: Plan,
        x: NDArray[np.float32],
        rule: Rule,
        maps: NDArray[np.float32],
        scores: NDArray[np.float32],
        targets: NDArray[np.int64],
        pictures: Sequence[Image] | None,
        photos: tuple[Photo, ...] | None,
    ) -> Attribution:
        """The result, with all that is known of the model.

        Parameters
        ----------
        plan
            The one that made the maps.
        x
            float32 (N, …): the samples, or some of them.
        rule
            The rule.
        maps, scores, targets, pictures, photos
            As `map`, `scores`, `target`, `images` and `photos` of `Attribution`.
        """
        facts = self._facts(plan)
        notes, depends = facts.under(plan, rule)
        if self.inputs.preprocess is not None and not photos:
            notes += unprepared(x, self.inputs.preprocess)
        return Attribution(
            map=maps,
            scores=scores,
            target=targets,
            rule=rule.name,
            notes=notes,
            layout=self.inputs.layout(x.shape),
            labels=self.labels,
            images=pictures or None,
            channels=self.inputs.preprocess.channels if self.inputs.preprocess else "RGB",
            head=facts.head,
            score_shape=plan.output_shape,
            depends_on_image=depends,
            photos=photos or None,
            provenance=self.provenance,
        )

    def _facts(self, plan: Plan) -> Facts:
        """The facts of a plan, found once."""
        facts = self._facts_of.get(plan)
        if facts is None:
            facts = self._facts_of[plan] = Facts(plan, self.source, self.settings, self.labels)
        return facts

    def _session(self, shape: Shape, keep: Kept, rewrite: Rewrite | None) -> Session:
        """Build the plan for samples of a shape, or take the one that is kept on this machine."""
        settings, known = self.settings, self.source

        def build() -> tuple[Plan, bool]:
            source = self._source()
            with computing(), collected_later():
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
        plan, still_has = self._plans.of((shape, known.has_batch), build) if is_kept else build()
        if known.has_batch and not still_has and known.nodes:  # sizes showed that axis 0 is no batch
            self.source = found = known.without_batch()
            self.inputs = replace(
                self.inputs,
                model_shape=found.input_shape,
                has_batch=False,
                channels_last=found.channels_last,
            )
        return Session(plan, settings.device, settings.threads, settings.memory)

    def _source(self) -> Source:
        """The model; where its nodes and weights were freed, it is read again."""
        if self.source.nodes:
            return self.source
        source = self._reader()
        if source.has_batch and not self.source.has_batch:
            source = source.without_batch()
        return source


def opened(model: Model, choice: Choice) -> tuple[Source, Reader]:
    """Read a model, while Python's collector waits.  Returns also what reads it again.

    Parameters
    ----------
    model, choice
        As for `open_model`.

    Raises
    ------
    GbpError
        Where the model cannot be read or explained.
    """
    with collected_later():
        source = open_model(model, choice)
    return source, Reader.of(model, choice, source)


def finished(rule: Rule, gradient: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rule's `finish`, applied to a gradient (N, K, …) at a tensor that holds `values` (N, …).

    Raises InputError for a finish that changes the shape, and ModelError where the map overflows.
    """
    if rule.finish is None:
        return gradient
    with computing():
        with calling(f"the finish of {rule.name!r}"):
            found = np.asarray(rule.finish(gradient, values[:, None]))
        if found.dtype.kind not in "fiu" or found.shape != gradient.shape:
            raise InputError(
                f"the finish of {rule.name!r} returned {found.dtype} of shape {list(found.shape)}.",
                supported=f"numbers of the gradient's shape {list(gradient.shape)}",
            )
        found = found.astype(np.float32, copy=False)
    if not is_finite(found):
        raise ModelError(
            f"the map holds NaN or infinity, which the finish of {rule.name!r} made.",
            hint="The network's values overflow float32.",
        )
    return found


def _run(
    session: Session,
    x: NDArray[np.float32],
    offset: int,
    compute: Callable[[Session, NDArray[np.float32], int], T],
) -> list[T]:
    """The results of `compute(session, x, offset)`: one, or one for each part where memory runs out.

    `offset`: the index of x[0] among all samples of the call.
    """

    def of_part(part: slice) -> T:
        return compute(session, x[part], offset + part.start)

    return list(session.fitting(slice(0, len(x)), of_part))


def _sizes(shape: Sequence[int | None]) -> Shape:
    """A shape of which every size is known."""
    return tuple(n for n in shape if n is not None)
