"""The element types of ONNX tensors."""

from __future__ import annotations

from onnx import TensorProto

#: The floating-point types that gbp reads.  It computes in float32.
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def type_name(data_type: int) -> str:
    """FLOAT16 for 10."""
    known = data_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(data_type) if known else f"unknown type {data_type}"
