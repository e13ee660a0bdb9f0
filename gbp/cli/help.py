"""Examples of each command, which `--help` prints behind the options."""

from __future__ import annotations

import argparse

_BEGINS = "examples:"

#: Command → two examples or more.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "gbp init model.onnx cat.jpg --labels imagenet",
        "gbp init model.onnx cat.jpg --labels imagenet --preprocess caffe --force",
    ),
    "explain": (
        "gbp explain model.onnx cat.jpg --preprocess imagenet --labels imagenet",
        "gbp explain model.onnx photos -o maps --rule vanilla,guided --style overlay",
        "gbp explain model.onnx cat.jpg --method smoothgrad --target 281 -o cat.pdf",
    ),
    "report": (
        "gbp report model.onnx photos --preprocess imagenet --labels imagenet",
        "gbp report model.onnx photos -o cats.html --rule vanilla --method grad-cam,smoothgrad",
    ),
    "batch": (
        "gbp batch model.onnx photos -o maps --preprocess imagenet",
        "gbp batch model.onnx photos -o maps --style none --arrays npz --shard 1/4",
    ),
    "warmup": (
        "gbp warmup model.onnx",
        "gbp warmup first.onnx second.onnx --size 224",
    ),
    "inspect": (
        "gbp inspect model.onnx",
        "gbp inspect model.onnx --size 320x480 --json",
    ),
    "verify": (
        "gbp verify model.onnx",
        "gbp verify model.onnx cat.jpg --preprocess imagenet",
    ),
    "sanity": (
        "gbp sanity model.onnx cat.jpg --preprocess imagenet",
        "gbp sanity model.onnx cat.jpg --rule vanilla --layers 8 -o sanity.png",
    ),
    "features": (
        "gbp features model.onnx photos --layer relu3 --channels 0-7 --preprocess imagenet -o out",
        "gbp features model.onnx @list.txt --layer relu3 --top 16 --part field -o out",
    ),
    "serve": (
        "gbp serve model.onnx --preprocess imagenet --labels imagenet",
        "gbp serve cats=model.onnx --host 0.0.0.0 --port 80 --max-pixels 12M",
    ),
}


class Formatter(argparse.HelpFormatter):
    """Wraps paragraphs, but no examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_BEGINS) else super()._fill_text(text, width, indent)


def epilog(name: str) -> str:
    """The examples of a command, below its options."""
    return "\n  ".join((_BEGINS, *EXAMPLES[name]))
