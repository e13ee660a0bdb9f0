"""Files and objects of frameworks, which are no ONNX files: how such networks become ONNX."""

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
#: Package of a network's class → the same.  Keras 3 stands before torch: its layers may be torch's modules.
_OF_OBJECTS = {"keras": _KERAS, "torch": _TORCH, "tensorflow": _TF2ONNX.format("saved-model")}


def how_to_export(model: object) -> str | None:
    """Advice about what is no ONNX file: a path of a file or folder, or a framework's own object.

    Returns None for what is of no known framework.
    """
    if isinstance(model, Path):
        is_saved_model = (model / "saved_model.pb").is_file()
        writer = _WRITERS.get(".pb" if is_saved_model else model.suffix.lower())
    else:
        packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
        writer = next((writer for name, writer in _OF_OBJECTS.items() if name in packages), None)
    return writer and f"gbp reads ONNX files. Write one with {writer}."


def how_to_download(start: bytes) -> str | None:
    """Advice about a file that came in place of a model, by its first bytes; None for any other."""
    if start.startswith(b"version https://git-lfs"):
        return "It only names a file that Git LFS stores: fetch that by git lfs pull."
    is_page = start[:256].lstrip().lower().startswith((b"<!doctype", b"<html"))
    return "It is a web page: download the file itself." if is_page else None
