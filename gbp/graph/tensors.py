"""The tensors of a model by name: those that can be kept, and what a caller calls them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import InputError

#: Names that a message shows.
_MAX_SHOWN = 5


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file, between the input and the scores.

    Parameters
    ----------
    name
        Its name in the file.
    node
        The name of the node that makes it.
    op
        The op of that node, as the file has it; of a node that stands for several ops, the last of these.
    shape
        The shape of one sample, without the batch, in the file's order of axes.
    channels
        The axis of `shape` that has the channels; None where the ops do not say.
    means
        The name of the tensor that holds the mean of each channel, where nothing else reads this one; else
        None.  It may be that of the scores.
    planes
        Whether its op makes, keeps or reads planes: "made", "kept", "read" or "other" (`gbp/ops/facts.py`).
    """

    name: str
    node: str
    op: str
    shape: tuple[int, ...]
    channels: int | None = None
    means: str | None = None
    planes: str = "other"


def find(tensors: Sequence[Tensor], name: str) -> Tensor:
    """The tensor that a caller means.

    Parameters
    ----------
    tensors
        Those that there are.
    name
        The name of a tensor, or of the node that makes it; or a part of either that only one tensor has.  A
        part that is a word of its own counts more than one within a word: "relu_1" is "block/relu_1/Relu" and
        not "block/relu_10/Relu".

    Raises
    ------
    InputError
        Where there is none, or more than one.
    """
    if not isinstance(name, str):
        raise InputError(f"a tensor is called {name!r}.", supported="names, as `Explainer.tensors` has them")
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    exact = [t for t in tensors if t.node == name]
    if len(exact) == 1:
        return exact[0]
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
    found = [tensor for tensor in tensors if name and (word.search(tensor.name) or word.search(tensor.node))]
    if not found:
        part = name.casefold()
        found = [t for t in tensors if name and (part in t.name.casefold() or part in t.node.casefold())]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{name!r} is a part of {len(found)} tensors' names: {_listed([t.name for t in found])}.",
            hint="Give one of them in full.",
        )
    names = {text: tensor.name for tensor in tensors for text in (tensor.node, tensor.name)}
    near = dict.fromkeys(names[text] for text in get_close_matches(name, names, _MAX_SHOWN))
    raise InputError(
        f"no tensor between the input and the scores is called {name!r}.",
        hint=f"Did you mean {' or '.join(map(repr, near))}?" if near else "`Explainer.tensors` lists them.",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(map(repr, names[:_MAX_SHOWN])) + more
