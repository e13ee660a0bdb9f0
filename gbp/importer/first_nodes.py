"""The first nodes of a network say on which axis of its image the channels are, and how many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from ..ops import fact


def reads_channels_last(nodes: tuple[onnx.NodeProto, ...], image: str, has_batch: bool = True) -> bool | None:
    """Whether the first node that treats axes differently reads the image as (N, H, W, C)."""
    for node in first_nodes(nodes, image):
        if fact(node.op_type).reads_planes:
            return False
        if node.op_type == "Unsqueeze" and not has_batch:
            return reads_channels_last(nodes, node.output[0])
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            return True if perm == ([0, 3, 1, 2] if has_batch else [2, 0, 1]) else None
        return None
    return None


def first_nodes(nodes: Iterable[onnx.NodeProto], image: str) -> Iterator[onnx.NodeProto]:
    """The nodes that read the image, directly or through nodes that work pixel by pixel.

    Nodes that read its shape alone say nothing of it.
    """
    names = {image}
    for node in nodes:
        if names.isdisjoint(node.input) or node.op_type in ("Shape", "Size"):
            continue
        if fact(node.op_type).is_pixelwise:
            names.update(node.output[:1])  # others are numbers of the whole tensor
        else:
            yield node


def with_channels(
    shape: tuple[int | None, ...],
    nodes: Iterable[onnx.NodeProto],
    image: str,
    stored: Mapping[str, onnx.TensorProto],
    channels_last: bool | None,
) -> tuple[int | None, ...]:
    """The declared shape of the image, with the number of channels that the first Conv takes.

    Optimum, for one, leaves open all sizes of an image.

    Parameters
    ----------
    shape
        As the file declares it.
    nodes, image
        The nodes in order of computation, and the tensor that holds the image.
    stored
        The tensors that the file stores.
    channels_last
        As `reads_channels_last` says.
    """
    axis = len(shape) - 1 if channels_last else 1
    if channels_last is None or len(shape) < 3 or shape[axis] is not None:
        return shape
    turned, names = ({image}, set[str]()) if channels_last else (set[str](), {image})
    for node in nodes:
        read = {*node.input}
        if (read.isdisjoint(turned) and read.isdisjoint(names)) or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type == "Conv" and node.input[0] in names and len(node.input) > 1:
            weights = stored.get(node.input[1])
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            channels = weights.dims[1] * group if weights is not None and len(weights.dims) > 2 else 0
            return (*shape[:axis], channels, *shape[axis + 1 :]) if channels > 0 else shape
        if node.op_type == "Transpose" and read.isdisjoint(names):  # the one that `reads_channels_last` found
            names.add(node.output[0])
        elif node.op_type != "Pad" and fact(node.op_type).is_pixelwise:
            (turned if read.isdisjoint(names) else names).update(node.output[:1])
        else:
            return shape
    return shape
