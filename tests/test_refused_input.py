"""Files, arrays, targets, options and commands that cannot be used are refused with a `GbpError`."""

from __future__ import annotations

import ast
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from broken import CLASSES, Model, image, input_dims, unknown_ops, valid
from builder import Builder
from PIL import Image

from gbp import Explainer, GbpError, InputError, ModelError
from gbp.cli import main as cli
from gbp.devices.cpu import CPU
from gbp.diagnostics.inspection import inspect

ROOT = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------------------------------------------- files


def says_it_once(message: str, name: str) -> None:
    """No refusal was taken for another fault, and refused again."""
    assert message.count(repr(name)) <= 1
    assert not message.endswith("..")


def test_weights_in_too_many_files(tmp_path: Path) -> None:
    model = valid()
    tensor = model.graph.initializer[0]
    for i in range(2000):
        (tmp_path / f"{i}.bin").write_bytes(b"")
        other = model.graph.initializer.add(name=f"w{i}", data_type=tensor.data_type, dims=[0])
        other.data_location = onnx.TensorProto.EXTERNAL
        other.external_data.add(key="location", value=f"{i}.bin")
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="the weights are stored in more than"):
        Explainer(tmp_path / "net.onnx")


def _catches(handler: ast.ExceptHandler) -> set[str]:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {ast.unparse(kind) for kind in kinds if kind is not None}


def caught_refusals(path: Path) -> list[tuple[str, int]]:
    """Where a file catches one of Python's wider exceptions around code that raises a refusal."""
    wide = {"Exception", "ValueError", "NotImplementedError", "MemoryError"}
    own = "^(refuse|damaged|invalid)$|(Model|Input|Unsupported|OfMemory)Error$"
    found = []
    for tried in (each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.Try)):
        raised = [
            ast.unparse(each.exc.func)
            for statement in tried.body
            for each in ast.walk(statement)
            if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call)
        ]
        refuses = any(re.search(own, name) for name in raised)
        for handler in tried.handlers:
            if any(kind.endswith(("GbpError", "InputError", "ModelError")) for kind in _catches(handler)):
                break
            if refuses and _catches(handler) & wide:
                found.append((path.name, tried.lineno))
    return found


@pytest.mark.fast
def test_no_refusal_is_caught_as_what_python_raises() -> None:
    """Refusals are ValueErrors too, and others: where one is raised, none of these is caught before it is."""
    paths = sorted((ROOT / "gbp").rglob("*.py"))
    assert [found for path in paths for found in caught_refusals(path)] == []


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a picture, and much that is neither."""
    monkeypatch.chdir(tmp_path)
    data = valid().SerializeToString()
    Path("net.onnx").write_bytes(data)
    Path("net.toml").write_text('preprocess = "unit"\nlabels = ["cat", "dog", "bird", "carp"]\n')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save("cat.png")
    Path("empty.onnx").write_bytes(b"")
    Path("half.onnx").write_bytes(data[: len(data) // 2])
    Path("text.onnx").write_text("Not a model at all.\n")
    Path("latin.onnx").write_bytes(data.replace(b"softmax", b"softma\xff"))
    Path("folder.onnx").mkdir()
    Path("network.pt").write_bytes(b"PK\3\4 of PyTorch")
    Path("network.keras").write_bytes(b"PK\3\4 of Keras")
    Path("empty.pb").write_bytes(b"")
    Path("saved").mkdir()
    Path("saved", "saved_model.pb").write_bytes(b"")
    Path("odd.onnx").write_bytes(_odd().SerializeToString())
    Path("deep.toml").write_text("labels = " + "[" * 20_000)
    Path("deep.onnx").write_bytes(data)
    Path("digits.toml").write_text("preprocess = {scale = " + "9" * 5000 + "}")
    Path("digits.onnx").write_bytes(data)
    Path("large.toml").write_text("preprocess = {scale = " + "9" * 400 + "}")
    Path("large.onnx").write_bytes(data)
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("Not a picture at all.\n")
    Path("half.png").write_bytes(Path("cat.png").read_bytes()[:90])
    Path("bomb.png").write_bytes(png(60_000, 60_000))
    Path("labels.txt").write_text("cat\ndog\n")
    Path("pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    Path("page.onnx").write_text("\n<!DOCTYPE html>\n<title>model.onnx</title>\n")
    Path("deep.json").write_text("[" * 100_000)
    return tmp_path


def _odd() -> Model:
    model = valid()
    unknown_ops(model)
    return model


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing.onnx", InputError, "cannot read 'nothing.onnx': No such file"),
        ("folder.onnx", InputError, "'folder.onnx' is a folder"),
        ("", InputError, "the path of the model is empty"),
        ("a\0b", InputError, "cannot read"),
        ("/dev/zero", InputError, "'/dev/zero' is no file"),
        ("empty.onnx", ModelError, "'empty.onnx' holds no ONNX graph"),
        ("half.onnx", ModelError, "'half.onnx' is not an ONNX file, or is damaged"),
        ("text.onnx", ModelError, "'text.onnx' is not an ONNX file, or is damaged"),
        ("cat.png", ModelError, "'cat.png' is not an ONNX file, or is damaged"),
        ("pointer.onnx", ModelError, "'pointer.onnx' is not an ONNX file, .*: fetch that by git lfs pull"),
        ("page.onnx", ModelError, "'page.onnx' is not an ONNX file, .* download the file itself"),
        ("network.pt", ModelError, r"'network.pt' is not .* reads ONNX files.*torch\.onnx\.export"),
        ("network.keras", ModelError, r"'network.keras' is not .*network\.export\("),
        ("empty.pb", ModelError, "'empty.pb' holds no ONNX graph.*--saved-model"),
        ("saved", InputError, "'saved' is a folder.*tf2onnx.*--saved-model"),
        ("latin.onnx", ModelError, "'latin.onnx' is damaged: .*is not UTF-8"),
        ("deep.onnx", InputError, "'deep.toml' is not valid TOML"),
        ("digits.onnx", InputError, "'digits.toml' is not valid TOML"),
        ("large.onnx", InputError, "'large.toml': preprocess scale is"),
    ],
)
def test_a_file_that_is_no_model(folder: Path, name: str, error: type[GbpError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Explainer(name)
    assert type(caught.value) is error
    says_it_once(str(caught.value), name)


@pytest.mark.parametrize("model", [b"", b"\x00", b"PK\x03\x04", None, 5, ["net.onnx"], onnx.GraphProto()])
def test_what_is_no_model(model: Any) -> None:
    for use in (Explainer, inspect):
        with pytest.raises(GbpError):
            use(model)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("torch.nn", r"torch\.onnx\.export"),
        ("keras.src.models", r"network\.export"),
        ("tensorflow", "tf2onnx"),
    ],
)
def test_a_frameworks_network_is_refused_with_what_exports_it(package: str, call: str) -> None:
    base = type("Module", (), {"__module__": package})
    own = type("Own", (base,), {})  # a class of the user's own module
    with pytest.raises(InputError, match=rf"^the model is of type Own\. .*gbp reads ONNX files.*{call}"):
        Explainer(own())


# ------------------------------------------------------------------------------ arguments of the Explainer


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(valid(), preprocess="unit", labels=["cat", "dog", "dog, spotted", "carp"])


def closed() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


ARRAYS: dict[str, tuple[Any, str]] = {
    "one channel": (image(1, 1, 8, 8), r"\[1, 1, 8, 8\].*Supported: \[N, 3, 8, 8\]"),
    "four channels": (image(1, 4, 8, 8), "shape"),
    "channels last": (image(1, 8, 8, 3), r"shape .* np\.moveaxis\(x, -1, 1\)\.$"),
    "another size": (image(1, 3, 9, 8), "shape"),
    "no batch": (image(3, 8, 8), r"shape .* x\[None\]\.$"),
    "pixels in no list": (np.zeros((2, 9, 9, 3), np.uint8), r"shape .* uint8, .* several are a list\.$"),
    "an address": ("https://example.com/cat.png", "cannot open .* download it"),
    "five axes": (image(1, 1, 3, 8, 8), "shape"),
    "no samples": (image(0, 3, 8, 8), "shape"),
    "no axes": (np.array(1.0), "shape"),
    "truths": (np.zeros((1, 3, 8, 8), bool), "bool.*PIL image"),
    "complex": (np.zeros((1, 3, 8, 8), complex), "complex"),
    "objects": (np.full((1, 3, 8, 8), None), "object"),
    "NaN": (np.where(np.arange(2).reshape(2, 1, 1, 1) == 1, np.nan, image(2, 3, 8, 8)), "sample 1 .*NaN"),
    "infinity": (np.full((1, 3, 8, 8), np.inf), "sample 0 .*infinity"),
    "beyond float32": (np.full((1, 3, 8, 8), 1e300), "sample 0 .*infinity"),
    "nothing": ([], "no images"),
    "None": (None, "NoneType"),
    "a number": (5, "int"),
    "a list of arrays": ([image()], "ndarray"),
    "a list of lists": ([[1.0, 2.0]], "list"),
    "a generator": ((name for name in ["cat.png"]), "generator"),
    "no file": ("nothing.png", "cannot open the image 'nothing.png'"),
    "a folder": ("/", "'/' is a directory"),
    "no name": ("", "cannot open"),
    "a NUL": ("a\0b.png", "cannot open"),
    "pixels of two channels": (np.zeros((8, 8, 2), np.uint8), r"uint8 of shape \[8, 8, 2\]"),
    "masked": (np.ma.masked_equal(np.zeros((1, 3, 8, 8)), 0), "masked"),
    "masked pixels": (np.ma.masked_equal(np.zeros((8, 8, 3), np.uint8), 0), "masked"),
    "masked pixels in a list": ([np.ma.masked_equal(np.zeros((8, 8), np.uint8), 0)], "masked"),
    "a file of text": (io.StringIO("PNG"), "no bytes"),
    "a closed file": (closed(), "cannot read .*closed file.*'rb'"),
}


def test_the_file_of_an_array_that_is_refused_is_named(explainer: Explainer, tmp_path: Path) -> None:
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    np.save(paths[0], image()[0])
    for wrong, message in (
        (np.full((3, 8, 8), np.nan), "NaN"),
        (np.zeros((3, 9, 8)), r"\[3, 9, 8\]"),
        (np.full((3, 8, 8), "a"), "holds <U1"),
    ):
        np.save(paths[1], wrong)
        for given in (paths, paths[1:]):
            with pytest.raises(InputError, match=f"the array '.*b.npy' .*{message}"):
                explainer.explain(given)


def test_array_files_of_an_open_size_have_the_size_of_the_first(tmp_path: Path) -> None:
    b = Builder()
    y = b.node("GlobalAveragePool", b.relu(b.conv(b.input(1, 3, 8, 8), 4)))
    model = b.model(b.flatten(y))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size {axis}"
    explainer, paths = Explainer(model), [tmp_path / name for name in ("a.npy", "b.npy")]
    for path, shape in zip(paths, [(3, 8, 9), (3, 8, 8)], strict=True):
        np.save(path, np.zeros(shape))
    with pytest.raises(InputError, match=r"b.npy' .*one sample of \[3, 8, 9\] in each .*shape of '.*a.npy'"):
        explainer.explain(paths)
    np.save(paths[0], np.zeros((4, 8, 9)))
    with pytest.raises(InputError, match=r"a.npy' .*one sample of \[3, \?, \?\] in each file\."):
        explainer.explain(paths)


@pytest.mark.parametrize("given", [3, [("x", 1)], "x"])
def test_what_is_given_for_inputs_is_a_table(given: Any) -> None:
    with pytest.raises(InputError, match=r"given is .*Supported: a table"):
        Explainer(valid(), given=given)


def test_what_numpy_makes_no_array_of(explainer: Explainer) -> None:
    class Tensor:
        """As torch's that require a gradient."""

        def __array__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("call detach() first")

    for target in (Tensor(), [Tensor()]):
        with pytest.raises(InputError, match=r"call detach\(\) first|target"):
            explainer.explain(image(), target=target)
    with explainer.run(image()) as run, pytest.raises(InputError, match=r"call detach\(\) first"):
        run.vjp(Tensor())


@pytest.mark.parametrize("case", ARRAYS)
@pytest.mark.filterwarnings("error")
def test_images_that_are_refused(explainer: Explainer, case: str) -> None:
    images, message = ARRAYS[case]
    with pytest.raises(InputError, match=message):
        explainer.explain(images, batch_size=1)
    if case != "a generator":
        with pytest.raises(InputError, match=message):
            explainer.predict(images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.png", "'empty.png' is not an image"),
        ("text.png", "'text.png' is not an image"),
        ("half.png", "'half.png' is a damaged image"),
        ("bomb.png", "'bomb.png' has more than .* million pixels"),
        ("net.onnx", "'net.onnx' is not an image"),
    ],
)
def test_files_that_are_no_image(folder: Path, explainer: Explainer, name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        explainer.explain(["cat.png", name])
    says_it_once(str(caught.value), name)


TARGETS: dict[str, tuple[Any, str]] = {
    "beyond the classes": (CLASSES, "target 4 is no class. Supported: 0 to 3"),
    "negative": (-1, "target -1 is no class"),
    "far beyond": (10**30, "target is 1000"),
    "a fraction": (1.5, "holds float64"),
    "NaN": (float("nan"), "holds float64"),
    "a truth": (True, "target is True"),
    "no label": ("zebra", "no class is called 'zebra'"),
    "almost a label": ("spotted dog", "no class"),
    "nothing": ("", "no class"),
    "an empty list": ([], r"target is \[\]"),
    "a table": ({"cat": 1}, "target is"),
    "a set": ({1}, "target is"),
    "ragged": ([[1], [1, 2]], "target is"),
    "bytes": (b"cat", "target is"),
    "too few": ([1], "2 image"),
    "too many": ([1, 2, 3], "2 image"),
    "three axes": (np.zeros((2, 1, 1), int), "target has shape"),
    "one of them beyond": ([0, 9], "target 9 is no class"),
    "a table with one beyond": ([[0, 1], [2, -7]], "target -7"),
    "two ones": (np.array([[1, 1, 0, 0], [0, 1, 0, 0]], float), "float64"),
    "no ones": (np.zeros((2, 4), bool), "bool"),
    "a million maps": (np.zeros((2, 3_000_000), int), "maps of one sample would take 2.15 GiB"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_that_are_refused(explainer: Explainer, case: str) -> None:
    target, message = TARGETS[case]
    with pytest.raises(InputError, match=message):
        explainer.explain(image(2, 3, 8, 8), target=target)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "algorithm": ({"algorithm": "fft"}, "algorithm is 'fft'"),
    "algorithm None": ({"algorithm": None}, "algorithm is None"),
    "device": ({"device": "abacus"}, "device is 'abacus'"),
    "no device": ({"device": None}, "device is None"),
    "no threads": ({"threads": 0}, "threads is 0"),
    "threads": ({"threads": "two"}, "threads is 'two'"),
    "tensor": ({"output": "nowhere"}, "no tensor is called 'nowhere'"),
    "tensor by number": ({"output": 5}, "no tensor is called 5"),
    "tensors": ({"output": ["y"]}, "no tensor is called"),
    "the image itself": ({"output": "x"}, "no tensor is called 'x'"),
    "weights": ({"output": "w"}, "no tensor is called 'w'"),
    "preset": ({"preprocess": "nonsense"}, "nonsense"),
    "preprocess": ({"preprocess": 5}, "preprocess is 5"),
    "std of 0": ({"preprocess": {"scale": 1, "std": 0}}, "std"),
    "a huge scale": ({"preprocess": {"scale": 10**400}}, "scale"),
    "labels": ({"labels": 5}, "labels"),
    "labels that are numbers": ({"labels": [1, 2, 3, 4]}, "labels"),
    "no labels file": ({"labels": "nothing.txt"}, "nothing.txt"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_refused(case: str) -> None:
    options, message = OPTIONS[case]
    with pytest.raises(InputError, match=message):
        Explainer(valid(), **options)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", None])
def test_a_batch_size_is_a_whole_number(explainer: Explainer, size: Any) -> None:
    if size is None:
        assert len(explainer.explain(image(), batch_size=None).map) == 1
        return
    with pytest.raises(InputError, match="batch_size"):
        explainer.explain(image(), batch_size=size)


@pytest.mark.parametrize("memory", [0, -1, 1e9, "512M", True])
def test_a_memory_is_a_whole_number(memory: Any) -> None:
    with pytest.raises(InputError, match="memory"):
        Explainer(valid(), memory=memory)


def test_a_batch_size_is_no_order_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit at once is done in slices, targets too, to the same bits."""
    explainer = Explainer(valid())
    x, target = image(6, 3, 8, 8), np.tile(np.arange(CLASSES), (6, 1))
    whole = explainer.explain(x, target=target, batch_size=10**18)
    monkeypatch.setattr(CPU, "max_bytes", 100_000)
    monkeypatch.setattr(CPU, "slice_bytes", 50_000)
    sliced = explainer.explain(x, target=target, batch_size=10**18)
    assert sliced.map.tobytes() == whole.map.tobytes()


def test_a_machine_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = Explainer(valid())

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("gbp.devices.cpu.aligned", full)
    for use in (explainer.predict, explainer.explain):
        with pytest.raises(InputError, match="no memory left"):
            use(image())


@pytest.mark.parametrize("rule", ["nonsense", "", None, 5, ["guided"]])
def test_rules_that_do_not_exist(explainer: Explainer, rule: Any) -> None:
    with pytest.raises(InputError, match="no rule"):
        explainer.explain(image(), rule=rule)


def test_labels_of_another_model() -> None:
    with pytest.raises(InputError, match="3 labels and 4 scores"):
        Explainer(valid(), labels=["a", "b", "c"]).explain(image())


def test_an_open_size_is_as_limited_as_a_fixed_one() -> None:
    model = valid()
    input_dims("N", 3, "H", "W")(model)
    explainer = Explainer(model)
    with pytest.raises(InputError, match=re.escape("[3, 16000, 16000] is too large")):
        explainer.explain(np.broadcast_to(np.float32(0), (1, 3, 16_000, 16_000)))
    with pytest.raises(ModelError, match="'fc': weights of shape"):
        explainer.explain(image(1, 3, 16, 16))


@pytest.mark.parametrize("size", [(0, 8), (-1, 8), (2**40, 2**40)])
def test_inspect_refuses_a_senseless_size(size: tuple[int, int]) -> None:
    model = valid()
    input_dims("N", 3, "H", "W")(model)
    assert "has shape" in inspect(model, size).unsupported[0]


# --------------------------------------------------------------------------------------- the command line


COMMANDS: dict[str, tuple[str, str]] = {
    "no model": ("explain nothing.onnx cat.png", "cannot read 'nothing.onnx'"),
    "an empty model": ("explain empty.onnx cat.png", "'empty.onnx' holds no ONNX graph"),
    "half a model": ("explain half.onnx cat.png", "'half.onnx' is not an ONNX file"),
    "a folder": ("explain folder.onnx cat.png", "'folder.onnx' is a folder"),
    "unknown ops": ("explain odd.onnx cat.png", "Frobnicate 'relu' (node 3 of 6); LSTM 'pool'"),
    "no picture": ("explain net.onnx nothing.png", "'nothing.png'"),
    "text": ("explain net.onnx cat.png text.png -o .", "'text.png' is not an image"),
    "half a picture": (
        "explain net.onnx half.png",
        "'half.png' is a damaged image: image file is truncated.",
    ),
    "a baseline": (
        "explain net.onnx cat.png --method integrated-gradients --baseline nosuch.npy",
        "cannot read the array 'nosuch.npy': No such file or directory.",
    ),
    "a bomb": ("explain net.onnx bomb.png", "'bomb.png' has more than"),
    "half a picture among others": (
        "explain net.onnx cat.png half.png -o .",
        "image file is truncated. --skip-broken leaves such images out.",
    ),
    "an address": (
        "explain net.onnx https://example.com/cat.png",
        "'https://example.com/cat.png'. gbp reads nothing from the network: download it.",
    ),
    "an address of a model": (
        "explain https://example.com/net.onnx cat.png",
        "cannot read 'https://example.com/net.onnx': No such file or directory. gbp reads nothing from the "
        "network: download it.",
    ),
    "an address of a model for a batch": (
        "batch s3://bucket/net.onnx cat.png -o out",
        "model is 's3://bucket/net.onnx'. Supported: a path of this machine.",
    ),
    "an address of labels": (
        "explain net.onnx cat.png --labels https://example.com/names.txt",
        "gbp reads nothing from the network: download it.",
    ),
    "an address of a list": (
        "explain net.onnx @https://example.com/list.txt",
        "gbp reads nothing from the network: download it.",
    ),
    "an address of an array": (
        "explain net.onnx cat.png --given a=https://example.com/a.npy",
        "No such file or directory. gbp reads nothing from the network: download it.\n",
    ),
    "an address of this machine": (
        "explain file:///net.onnx cat.png",
        "cannot read 'file:///net.onnx': No such file or directory. Give its path, without file://.",
    ),
    "half a picture in a report": (
        "report net.onnx cat.png half.png -o a.html",
        "image file is truncated. --skip-broken leaves such images out.",
    ),
    "class 99": ("explain net.onnx cat.png --target 99", "target 99 is no class. Supported: 0 to 3"),
    "no such class": ("explain net.onnx cat.png --target zebra", "no class is called 'zebra'"),
    "labels of another model": ("explain net.onnx cat.png --labels labels.txt", "2 labels and 4 scores"),
    "deep labels": ("explain net.onnx cat.png --labels deep.json", "deep.json"),
    "no such tensor": ("explain net.onnx cat.png --output conv9", "no tensor is called 'conv9'"),
    "another size": (
        "explain net.onnx cat.png --size 9",
        "Leave the size out: pictures are scaled to the network's.",
    ),
    "a device": ("explain net.onnx cat.png --device tpu", "device is 'tpu'"),
    "no folder": ("explain net.onnx cat.png -o net.onnx/out.png", "net.onnx"),
    "no format": ("explain net.onnx cat.png -o out.gif", "'out.gif'"),
    "no place": ("explain net.onnx cat.png -o /proc/out.png", "cannot write '/proc/out.png'"),
    "inspect nothing": ("inspect nothing.onnx", "cannot read 'nothing.onnx'"),
    "inspect half": ("inspect half.onnx", "'half.onnx' is not an ONNX file"),
}


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_line_says_it_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    line, message = COMMANDS[case]
    was = files(folder)
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gbp: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert files(folder) == was


def test_the_command_line_on_what_is_in_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "net.onnx", "cat.png", "-o", "out.png"]) == 0
    assert Path("out.png").exists()
    assert cli.main(["inspect", "odd.onnx"]) == 2
    assert "Frobnicate 'relu'" in capsys.readouterr().out
