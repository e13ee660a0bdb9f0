"""What comes from files reaches a terminal without a control character, wherever it stood in them."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import image, valid
from PIL import Image

from gbp import Explainer, GbpError
from gbp.cli import main as cli
from gbp.errors import shown

#: Clear the screen, set the title, a second line, C1's CSI, another direction of writing, a tag, DEL.
HOSTILE = "\x1b[2J\x1b]0;mine\x07\r\nnext\x9b31m\u202egnp\U000e0041\x7f"


def is_clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def hostile_model() -> onnx.ModelProto:
    """A model all of whose names are hostile."""
    model = valid()
    names = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    names |= {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        node.name += HOSTILE
        node.input[:] = [name + HOSTILE if name in names else name for name in node.input]
        node.output[:] = [name + HOSTILE for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.value_info):
        value.name += HOSTILE
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = hostile_model()
    Path("net.onnx").write_bytes(model.SerializeToString())
    model.graph.node[2].op_type = "Frobnicate" + HOSTILE
    Path("odd.onnx").write_bytes(model.SerializeToString())
    Path("labels.json").write_text(json.dumps([name + HOSTILE for name in ("cat", "dog", "bird", "carp")]))
    name = HOSTILE.replace("/", "")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(f"{name}.png")
    Path(f"{name}.onnx").write_bytes(b"nothing")
    return tmp_path


COMMANDS: dict[str, tuple[list[str], int]] = {
    "explain": (
        ["explain", "net.onnx", f"{HOSTILE}.png", "--preprocess", "unit", "--labels", "labels.json"],
        0,
    ),
    "inspect": (["inspect", "net.onnx"], 0),
    "inspect what is odd": (["inspect", "odd.onnx"], 2),
    "explain what is odd": (["explain", "odd.onnx", f"{HOSTILE}.png"], 2),
    "verify": (["verify", "net.onnx"], 0),
    "warmup": (["warmup", "net.onnx"], 0),
    "a model that is none": (["inspect", f"{HOSTILE}.onnx"], 2),
    "no such model": (["inspect", f"{HOSTILE}.nowhere"], 2),
    "a label": (
        ["explain", "net.onnx", f"{HOSTILE}.png", "--preprocess", "unit", "--target", f"zebra{HOSTILE}"],
        2,
    ),
    "an output": (["inspect", "net.onnx", "--output", f"there{HOSTILE}"], 2),
    "a place": (["explain", "net.onnx", f"{HOSTILE}.png", "-o", f"{HOSTILE}/x.png"], 2),
    "an option": (["inspect", "net.onnx", f"--{HOSTILE}"], 2),
    "an argument too many": (["inspect", "net.onnx", HOSTILE], 2),
    "an input": (["inspect", "net.onnx", "--given", f"{HOSTILE}=1"], 2),
}


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.parametrize("json_too", [False, True])
def test_commands(folder: Path, capfd: pytest.CaptureFixture[str], case: str, json_too: bool) -> None:
    arguments, expected = COMMANDS[case]
    if json_too:
        if arguments[0] == "warmup":
            return
        arguments = [*arguments, "--json"]
    try:
        code = cli.main(arguments)
    except SystemExit as error:  # argparse
        code = error.code
    out, err = capfd.readouterr()
    assert code == expected, err
    assert is_clean(out), repr(out)
    assert is_clean(err), repr(err)
    if json_too and case == "explain":  # and it is the same text
        assert json.loads(out)["images"][0]["image"] == f"{HOSTILE}.png"
        assert HOSTILE in json.loads(out)["images"][0]["top"][0]["label"]


def test_messages_are_one_line(folder: Path) -> None:
    for use in (
        lambda: Explainer("odd.onnx"),
        lambda: Explainer(f"{HOSTILE}.onnx"),
        lambda: Explainer(valid(), output=HOSTILE),
        lambda: Explainer(valid(), labels=["a" + HOSTILE] * 4).explain(image(), target=HOSTILE),
        lambda: Explainer(valid(), device=HOSTILE),
        lambda: Explainer(valid()).explain(HOSTILE),
    ):
        with pytest.raises(GbpError) as caught:
            use()
        assert str(caught.value).isprintable()


def test_any_character() -> None:
    for code in (*range(0x250), 0x200E, 0x2028, 0x202E, 0x2066, 0xFEFF, 0xFFFF, 0xE0041):
        assert shown(f"a{chr(code)}b").isprintable(), hex(code)
        assert not chr(code).isprintable() or shown(chr(code)) == chr(code), hex(code)


def in_ascii(model: onnx.ModelProto, folder: Path, *options: str) -> str:
    """What `gbp inspect` prints on a terminal that has ASCII alone."""
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    printed = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(printed, "ascii", write_through=True)):
        assert cli.main(["inspect", str(folder / "net.onnx"), *options]) == 0
        return printed.getvalue().decode("ascii")


def test_tables_are_aligned_in_ascii(tmp_path: Path) -> None:
    model = valid()
    model.graph.node[0].name = "größe"
    model.graph.node[2].name = "a long name " * 4
    head, *lines = in_ascii(model, tmp_path).split("\n")
    at = head.index("output")
    assert [line[at - 1 : at + 5] for line in lines[:3]] == [" 8x8x8"] * 3
    assert lines[0].startswith(r"gr\xf6\xdfe ")
    assert "..." in lines[2]


def test_json_in_ascii_holds_the_same_names(tmp_path: Path) -> None:
    model = valid()
    model.graph.node[0].name = "größe ×"
    assert json.loads(in_ascii(model, tmp_path, "--json"))["layers"][0]["name"] == "größe ×"
