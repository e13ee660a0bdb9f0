"""A file becomes a `Graph`.

In come the path, bytes or ModelProto of an ONNX model, and which input and output to take; out comes a
`Source`, checked as far as it can be without sizes, and for given sizes a `Graph`.  Nothing behind this
folder knows ONNX files.  May import ops (whose parsers it calls), graph, kernels' memory, limits and
errors.
"""
