"""What the methods share: runs with their targets, copies of a sample, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attribution import Attribution, joined
from ..errors import ModelError
from ..explainer import Explainer
from ..inputs import Images
from ..limits import elements
from ..rules import Rule, rule_named
from ..run import Run
from ..targets import Target

#: Copies of a sample that are computed at a time, and bytes that they, their seeds and their maps may take:
#: few enough that what is computed of them, about ten times as much, stays in a processor's caches.
_MAX_COPIES = 32
_MAX_BYTES = 7 * 2**20

#: From a run and its targets (n, K) to maps (n, K, …), and details with one row for each sample.
Compute = Callable[[Run, NDArray[np.int64]], tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]


def explained(
    explainer: Explainer,
    images: Images,
    target: Target,
    rule: str | Rule,
    method: str,
    compute: Compute,
    keep: Sequence[str] = (),
) -> Attribution:
    """Run images slice by slice, and join what `compute` makes of the runs.

    Parameters
    ----------
    explainer
        The model.
    images, target, rule
        As for `Explainer.explain`.
    method
        The method's name.
    compute
        Makes the maps of a run, and the details of its samples.
    keep
        As for `Explainer.runs`.

    Raises
    ------
    InputError
        As `Explainer.explain`.
    ModelError
        Where a map overflows float32.
    """
    parts: list[Attribution] = []
    for run in explainer.runs(images, keep):
        targets = run.targets(target)
        maps, details = compute(run, targets.reshape(len(run), -1))
        with np.errstate(over="ignore"):
            single = maps.astype(np.float32)
        if not np.isfinite(single).all():
            raise ModelError("the map holds NaN or infinity.", hint="The network's values overflow float32.")
        one = targets.ndim == 1
        found = run.attribution(single[:, 0] if one else single, targets, rule)
        rows = {key: row[:, 0] if one and row.ndim == 2 else row for key, row in details.items()}
        parts.append(replace(found, method=method, details=rows))
    found = joined(parts)
    return replace(found, notes=(*found.notes, *found.likeness_notes()))


def with_details(found: Attribution, notes: Sequence[str], **details: Any) -> Attribution:
    """The result with more notes behind its own, and with details that hold for all samples."""
    return replace(found, notes=(*found.notes, *notes), details={**details, **found.details})


def one_hot(targets: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """The seeds of classes, float32 (…, classes): 1 at the target."""
    seeds = np.zeros((*targets.shape, classes), np.float32)
    np.put_along_axis(seeds, targets[..., None], 1, axis=-1)
    return seeds


def each_copy(
    explainer: Explainer,
    x: NDArray[np.float32],
    copies: Callable[[slice], NDArray[np.float32]],
    count: int,
    targets: NDArray[np.int64],
    classes: int,
    rule: str | Rule,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Explain copies of one sample, one forward run each.

    Parameters
    ----------
    explainer
        The model.
    x
        The sample, float32.
    copies
        Makes some of the copies, float32 (m, …).
    count
        How many there are.
    targets
        int64 (K,): the classes, the same for all copies.
    classes
        How many scores there are.
    rule
        The rule.

    Yields
    ------
    The maps (K, …) and the scores (classes,) of each copy, in order.
    """
    k, size = len(targets), elements(x.shape)
    most = max(1, min(_MAX_COPIES, _MAX_BYTES // (4 * (size + k * (size + classes)))))
    step = _even(count, most)
    rewrites = rule_named(rule).rewrite is not None
    for start in range(0, count, step):
        some = copies(slice(start, min(start + step, count)))
        if rewrites:  # a run would compute the network as it is, too
            found = explainer.explain(some, rule=rule, target=np.tile(targets, (len(some), 1)))
            yield from zip(found.map, found.scores, strict=True)
            continue
        for run in explainer.runs(some):
            seeds = one_hot(np.broadcast_to(targets, (len(run), k)), classes)
            yield from zip(run.vjp(seeds, rule), run.scores, strict=True)


def _even(count: int, most: int) -> int:
    """The size of slices, up to `most`, that leaves the least rest: runs of one size share their memory."""
    sizes = range(max(1, most // 2), min(most, count) + 1)
    return max(sizes, key=lambda size: (-(-count % size), size)) if sizes else count
