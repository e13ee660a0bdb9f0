"""The importer: a file becomes a `Graph`.

The path, bytes or ModelProto of an ONNX model come in, with the choice of input and output.  A `Source`
comes out, checked as far as it can be without sizes; and for given sizes a `Graph`.  No other folder knows
ONNX files.  It may import ops (it calls their parsers), graph, the memory of kernels, files,
arguments, limits and errors.
"""
