"""Files of frameworks, which are no ONNX files: how the networks in them become ONNX."""

from __future__ import annotations

from pathlib import Path

_TORCH = "PyTorch: torch.onnx.export(network.eval(), …)"
_KERAS = 'Keras: network.export("model.onnx", format="onnx")'
_TF2ONNX = "tf2onnx: python -m tf2onnx.convert --{} … --output model.onnx"
#: Suffix of a file → what writes an ONNX file of its network.
_WRITERS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), _TORCH),
    **dict.fromkeys((".keras", ".h5", ".hdf5"), _KERAS),
    ".tflite": _TF2ONNX.format("tflite"),
    ".pb": _TF2ONNX.format("saved-model"),
}


def how_to_export(file: Path | bytes | None) -> str | None:
    """Advice about a file or folder that is no ONNX file; None where it is of no known framework."""
    if not isinstance(file, Path):
        return None
    is_saved_model = (file / "saved_model.pb").is_file()
    writer = _WRITERS.get(".pb" if is_saved_model else file.suffix.lower())
    return writer and f"gbp reads ONNX files. Write one with {writer}."
