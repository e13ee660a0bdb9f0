"""`features`: the strongest activations of a layer's channels over many images, and what caused each.

    scan      Every image is run forward.  Each channel counts with its strongest unit, once an image; the
              strongest of all images are kept.  The state is written now and then, so that a run that was
              stopped goes on.
    project   For each of these units all others are set to zero, and its activation is projected back to the
              image under a rule.  It is cut to the unit's receptive field, or to the part of it that counts,
              beside the same part of the image.

Source: Zeiler & Fergus 2013, section 4 and Figure 2.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import Explainer, GbpError, InputError, Tensor
from ..arguments import whole_number
from ..bulk.folder import Folder
from ..bulk.job import settings_of
from ..errors import counted
from ..files import is_address
from ..graph.graph import Graph
from ..graph.tensors import find
from ..importer.batch_axis import settled
from ..importer.load import open_model
from ..importer.subgraph import Choice
from ..pictures.files import check_writable, save_picture
from ..pictures.paths import find_images
from ..rules import rule_named
from .page import index_page
from .project import PARTS, Projector
from .scan import CHUNK, Scan
from .strongest import Hit

#: Channels where none are named.
_FEW = 16


@dataclass(frozen=True)
class Features:
    """The result of `features`.

    Parameters
    ----------
    layer
        The tensor's name.
    images
        How many images were looked at.
    before
        How many of these by an earlier run.
    failed
        Image → why it could not be read.
    hits
        Channel → its strongest hits, the strongest first.
    field
        (H, W): how many pixels a unit sees; more than the image has where windows reach beyond it.
    index
        The page.
    """

    layer: str
    images: int
    before: int
    failed: dict[str, str]
    hits: dict[int, list[Hit]]
    field: tuple[int, int]
    index: Path


def features(
    model: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    layer: str,
    channels: Sequence[int] | None = None,
    top: int = 9,
    rule: str = "deconvnet",
    part: str = "effective",
    stdin: IO[bytes] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Features:
    """Find what the channels of a layer respond to, and write a picture of each and a page of all.

    Parameters
    ----------
    model
        The path of the model.
    images
        Names as for `pictures.paths.find_images`: files, folders, patterns, lists.  Any number.
    out
        The folder to write to: "channel-N.png" for each channel, "index.html" and "features.json".  A run
        that was stopped goes on there.
    layer
        The tensor, or its node, or a part of a name that no other has.
    channels
        Which of its channels; by default the first 16.
    top
        How many images of each channel.
    rule
        The rule of the projection.
    part
        "effective": pictures show the middle of what a unit sees, the smallest square that holds nine tenths
        of the projections' magnitude, as the median of a channel's hits (after Luo et al. 2016).  "field":
        they show all that it sees.
    stdin
        The file that "-" among the images stands for.
    progress
        Called with the images done and their number.
    report
        Called with a few words before each channel is drawn.  An error that it or `progress` raises stops the
        run and reaches the caller as it is.
    **options
        Arguments of `Explainer`.

    Raises
    ------
    InputError
        For arguments that cannot be used; where the model takes no images; and where `out` was begun with
        other settings, or for other images.
    GbpError
        Where the model cannot be explained.
    """
    whole_number("top", top)
    if part not in PARTS:
        raise InputError(f"part is {part!r}.", supported=", ".join(PARTS))
    if is_address(out):
        raise InputError(f"out is {out!r}.", supported="a path of this machine")
    rule_named(rule)
    out = os.fsdecode(out)
    check_writable(Path(out, "index.html"))
    path = os.fsdecode(model)
    names = [images] if isinstance(images, (str, os.PathLike)) else images
    files = find_images(names, stdin)
    explainer = Explainer(path, **options)
    if explainer.layout not in ("NCHW", "NHWC"):
        raise InputError("the model takes no images.", supported="(N, C, H, W) and (N, H, W, C)")
    first = _first_sample(explainer, files)
    explainer.predict(first)  # now all sizes are known
    tensor = find(explainer.tensors, layer)
    chosen = _channels(tensor, channels)
    folder = Folder(out)
    settings = {"layer": tensor.name, "channels": list(chosen), "top": top, "rule": rule, "part": part}
    folder.open(settings_of(path, explainer, command="features", **settings))
    try:
        scan = Scan(explainer, tensor, folder, files, chosen, top)
        before = scan.done
        progress(before, len(files))
        for done in scan.run():
            progress(done, len(files))
        project = Projector(explainer, tensor, _graph(path, options, first.shape), rule, part)
        _draw(scan, project, report)
    finally:
        folder.close()
    return Features(
        tensor.name,
        len(files),
        before,
        scan.failed,
        scan.strongest.hits,
        project.field,
        Path(out) / "index.html",
    )


def _draw(scan: Scan, project: Projector, report: Callable[[str], None]) -> None:
    """Write a picture of each channel's hits, and the page of all."""
    name, read = project.tensor.name, len(scan.files) - len(scan.failed)
    made: dict[int, tuple[str, tuple[int, int], Sequence[Hit]]] = {}
    for channel, hits in scan.strongest.hits.items():
        report(f"drawing channel {channel}")
        file, size = f"channel-{channel}.png", (0, 0)
        if hits:
            title = f"{name}, channel {channel}: {len(hits)} strongest of {counted(read, 'image')}"
            picture = project.picture(title, channel, hits)
            scan.folder.put(file, _png(picture))
            size = picture.size
        made[channel] = file, size, hits
    about = _about(project, read, len(scan.failed))
    scan.folder.put("index.html", index_page(f"Features of {name}", about, made).encode())


def _png(picture: Image.Image) -> bytes:
    """The content of a picture's file."""
    file = io.BytesIO()
    save_picture(picture, file, "png")
    return file.getvalue()


def _about(project: Projector, read: int, failed: int) -> tuple[str, ...]:
    """The paragraphs above the pictures, after so many images were read."""
    shown = ""
    if project.part == "effective":
        shown = "; shown is the middle of them, which holds nine tenths of what is projected back"
    more = f" ({failed} more could not be read)" if failed else ""
    images = f"{counted(read, 'image')}{more}"
    return (
        f"The strongest unit of each channel of {project.tensor.name}, in each of {images}: "
        f"on the left what the unit responds to, projected back under the rule {project.rule}, on the right "
        f"the same part of the image. A unit sees {project.field[0]} × {project.field[1]} pixels{shown}.",
        "Zeiler & Fergus 2013, Visualizing and understanding convolutional networks.",
    )


def _first_sample(explainer: Explainer, files: Sequence[str]) -> NDArray[np.float32]:
    """The first image that can be read, prepared.  Raises the error of the first where none can be."""
    error: GbpError | None = None
    for file in files[:CHUNK]:
        try:
            return explainer.prepare([file])
        except GbpError as found:
            error = error or found
    raise error or InputError("there are no images.")


def _channels(tensor: Tensor, channels: Sequence[int] | None) -> tuple[int, ...]:
    """The chosen channels; by default the first few.  Raises InputError for what is no channel."""
    count = tensor.shape[tensor.channels or 0]
    if tensor.channels is None and len(tensor.shape) > 1:
        raise InputError(
            f"layer {tensor.name!r} has shape {list(tensor.shape)}, and its channels are not known."
        )
    chosen = tuple(dict.fromkeys(range(min(_FEW, count)) if channels is None else channels))
    wrong = [
        c for c in chosen if isinstance(c, bool) or not isinstance(c, (int, np.integer)) or not 0 <= c < count
    ]
    if wrong or not chosen:
        found = f"{wrong[0]!r} is no channel of {tensor.name!r}." if wrong else "there are no channels."
        raise InputError(found, supported=f"0 to {count - 1}")
    return tuple(map(int, chosen))


def _graph(model: str, options: dict[str, Any], shape: tuple[int, ...]) -> Graph:
    """The graph of the network for samples of this shape."""
    choice = Choice(options.get("output"), options.get("input"), options.get("given") or {})
    source = open_model(model, choice)
    return settled(source, (source.input_shape[0] or 1, *shape[1:]))[1]
