"""The importer: a file becomes a `Graph`.

The path, bytes or ModelProto of an ONNX model come in, with the choice of input and output.  A `Source`
comes out, checked as far as it can be without sizes; and for given sizes a `Graph`.  No other folder knows
ONNX files.  It may import ops (it calls their parsers), graph, the memory of kernels, files,
arguments, limits and errors.

In order, a `Source` is made once:

    proto.read                    a path, bytes or a ModelProto → a ModelProto; large tensors stay in files
    functions.inlined             calls of functions → the functions' nodes
    outputs.with_heads_apart      a Sigmoid or Softmax that onnxruntime joined with others → a node of its own
    proto.check_tensors           stored tensors are dense, and each has a name of its own
    subgraph.locate               input, scores (`outputs.py`) and the nodes between: a `Source`
    refusals.unsupported_nodes    all nodes that are not supported, in one message

and a `Graph` for each size of sample (`batch_axis.settled` calls `load.build`; or follows the batch of
another `Builder` through all nodes, by `batch_place.py` and `batch_place_nodes.py`, where nodes move it or
fold it).  There `load.Builder` takes node by node from the queue of `node_queue.py`:

    folding.evaluate              a node of constants is computed
    node_queue.NodeQueue          an If (`branches.py`) or an op with a rewriter → other nodes, to the front
                                  of the queue
    moved_batch.MovedBatch        a node that moves the batch axis, or reads what such a node makes → layers
    ops.PARSERS                   a node whose tensors have the batch first → layers (`layers.py`)
    sample_axis_nodes.in_front    a node that uses axis 0 otherwise (`sample_axis.py`) → layers
"""
