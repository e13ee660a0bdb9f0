"""`Network`: what a loaded model computes besides maps: prepared input, scores, and runs to ask about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..arguments import at_least_one
from ..errors import InputError
from ..graph.tensors import Tensor
from ..inputs import Images
from ..pictures.layout import Layout
from ..plan.plan import Plan
from .engine import Engine
from .run import Run


class Network:
    """A loaded model.  `Explainer` is one."""

    _engine: Engine

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of the model's input, batch first; None for each size that the file leaves open."""
        return self._engine.source.input_shape

    @property
    def layout(self) -> Layout:
        """The axes of the model's input: "NCHW" or "NHWC" images, "NC" rows, "NCL" series, "ND" others."""
        return self._engine.inputs.layout(self.input_shape)

    def prepare(self, images: Images) -> NDArray[np.float32]:
        """Preprocess images as `explain` does.

        Parameters
        ----------
        images
            As for `explain`.

        Returns
        -------
        float32 (N, …) in the model's own input layout.

        Raises
        ------
        InputError
            For what is no image.
        """
        return self._engine.ready(images).x

    def predict(self, images: Images) -> NDArray[np.float32]:
        """Compute the scores of each image: the tensor to explain, by default the logits.

        Parameters
        ----------
        images
            As for `explain`.

        Returns
        -------
        float32 (N, classes).

        Raises
        ------
        InputError
            For what is no image.
        """
        return self._engine.scores(images)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors between the input and the scores: those that `run` can keep, in order of computation.

        A tensor inside a rectifier or an activation that is written in parts is none of them, because gbp
        computes such parts as one.

        Raises
        ------
        InputError
            Where the model leaves its sizes open and nothing says them: no image was explained yet, and
            `preprocess` has no size.
        """
        return self._engine.tensors()

    def tensors_for(self, images: Images) -> tuple[Tensor, ...]:
        """`tensors`, with the shapes that they have for certain images.

        Where the model leaves its sizes open, `tensors` has the shapes of what was explained last, which
        another thread may change.

        Parameters
        ----------
        images
            As for `explain`.

        Raises
        ------
        InputError
            For what is no image.
        """
        return self._engine.tensors(images)

    @contextmanager
    def run(self, images: Images, keep: Sequence[str] = ()) -> Iterator[Run]:
        """Run images forward, and hold the run for any number of questions.

            with explainer.run("cat.jpg", keep=["relu3"]) as run:
                value = run.value("relu3")                       # what the tensor holds
                maps = run.vjp(value, rule="guided", of="relu3")  # what moved it

        Parameters
        ----------
        images
            As for `explain`.  All are computed at once; `runs` takes any number.
        keep
            Tensors to ask about: names of tensors or of nodes, or a part of one that no other has.

        Yields
        ------
        The `Run`.  It holds memory until the `with` block ends.

        Raises
        ------
        InputError
            For what is no image, for a name that no tensor has, and where so many images do not fit into
            `memory` at once.
        ModelError
            Where the network's values overflow.
        """
        count, kept = self._engine.inputs.count(images), names(keep)
        for batch, session in self._engine.batches(images, count, keep=kept, check_finite=False):
            if len(batch.x) < count:
                raise InputError(
                    f"{count} images do not fit into one run; {len(batch.x)} do.",
                    hint="`runs` takes them slice by slice; or give the Explainer more `memory`.",
                )
            session_for = partial(self._engine.sessions.of, batch.x.shape[1:], kept)
            with Run(self._engine, session, session_for, batch, slice(0, count), 0, count) as run:
                yield run

    def runs(
        self,
        images: Images,
        keep: Sequence[str] = (),
        *,
        batch_size: int | None = None,
        to_input: bool = True,
    ) -> Iterator[Run]:
        """Run any number of images forward, slice by slice.

        Parameters
        ----------
        images, keep
            As for `run`.
        batch_size
            As for `explain`.
        to_input
            Whether gradients with respect to the input will be asked for.  If not, layers before the kept
            tensors write no masks, which is faster.

        Yields
        ------
        A `Run` for each slice, in order; `run.samples` says which images it is of.  It is closed when the
        next is asked for.

        Raises
        ------
        InputError
            As `run`.
        ModelError
            As `run`.
        """
        count, done, kept = self._engine.inputs.count(images), 0, names(keep)
        size = at_least_one("batch_size", batch_size)
        for batch, session in self._engine.batches(images, size, keep=kept, check_finite=False):
            session_for = partial(self._engine.sessions.of, batch.x.shape[1:], kept)
            open_part = partial(
                Run, self._engine, session, session_for, batch, offset=done, count=count, to_input=to_input
            )
            for run in session.fitting(slice(0, len(batch.x)), open_part):
                with run:
                    yield run
            done += len(batch.x)

    def _plan_for(self, shape: tuple[int, ...]) -> tuple[Plan, int]:
        """The plan for samples of one shape, and how many threads execute it; `diagnostics` reads it.

        Parameters
        ----------
        shape
            The shape of one sample, without the batch.

        Raises
        ------
        InputError
            On another device than the CPU.
        """
        if not self._engine.settings.device.is_host:
            raise InputError("plans are inspected on the CPU alone.", hint="Leave the device out.")
        return self._engine.sessions.of(tuple(shape)).plan, self._engine.settings.threads


def names(keep: Sequence[str]) -> tuple[str, ...]:
    """The argument `keep`.  Raises InputError unless it is a sequence of names."""
    if not isinstance(keep, Iterable):
        raise InputError(f"keep is {keep!r:.80}.", supported='names of tensors or of nodes, as ["relu3"]')
    given = (keep,) if isinstance(keep, str) else tuple(keep)
    for name in given:
        if not isinstance(name, str):
            raise InputError(f"keep holds {name!r}.", supported="names of tensors or of nodes")
    return given
