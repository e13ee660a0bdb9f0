"""Train the demo model on synthetic scenes and export it to ONNX: the only file here that needs torch.

    python models/train_demo.py            # draw, train, measure, export: under ten minutes on two cores
    python models/train_demo.py --help

The network sees labels only.  The masks serve to measure, once it is trained, how much of an explanation
falls on the object.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageFilter
from scenes import CLASSES, SIZE, Scene, draw
from torch import Tensor, nn

HERE = Path(__file__).parent

MEAN, STD = 0.5, 0.25  # after the `unit` preset, x / 255; the same for the three channels
WIDTHS = (16, 32, 64, 128)  # channels of the convolutions; one output of the last sees 38×38 pixels
POOLS = (2, 2, 2, 12)  # the last one spans the whole map: only the best position of a channel counts
HIDDEN = 64

TRAIN_SEED, TEST_SEED = 0, 30_000_000  # first seeds of the two disjoint sets; the gallery has its own
GALLERY_SEEDS = {
    "arrow": 20_000_010,
    "cup": 20_000_002,
    "fish": 20_000_004,
    "heart": 20_000_008,
    "house": 20_000_007,
    "key": 20_000_011,
    "lightning": 20_000_006,
    "moon": 20_000_003,
    "mushroom": 20_000_014,
    "ring": 20_000_012,
    "star": 20_000_000,
    "umbrella": 20_000_005,
}
COVER = "ring"  # the gallery scene that is also demo.png

Images = NDArray[np.uint8]  # (N, SIZE, SIZE, 3)
Labels = NDArray[np.int64]
Rng = np.random.Generator


# --- Data -------------------------------------------------------------------------------------------------


def load_scenes(first_seed: int, count: int, cache: Path) -> tuple[Images, Labels]:
    """Scenes `first_seed` … `first_seed + count - 1`, drawn once and kept in `cache`.

    Nothing ties a cached file to the code that drew it: empty the cache after a change to scenes.py.
    """
    path = cache / f"scenes_{first_seed}_{count}.npz"
    if not path.exists():
        scenes = [draw(seed) for seed in range(first_seed, first_seed + count)]
        images = np.stack([scene.image for scene in scenes])
        np.savez(path, images=images, labels=np.array([scene.label for scene in scenes]))
    with np.load(path) as data:
        return data["images"], data["labels"]


def augment(images: Images, rng: Rng, reach: int = 6) -> Images:
    """Shift, mirror, permute the colour channels of, and re-expose each image, at random."""
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    result = np.empty_like(images)
    for i, (y, x) in enumerate(rng.integers(0, 2 * reach + 1, (len(images), 2))):
        crop = padded[i, y : y + SIZE, x : x + SIZE]
        recast = crop[:, :: rng.choice([-1, 1]), rng.permutation(3)]
        exposed = recast * np.float32(rng.uniform(0.75, 1.25)) + np.float32(rng.uniform(-25, 25))
        result[i] = np.clip(exposed, 0, 255)
    return result


def to_input(images: Images) -> Tensor:
    """The sidecar's preprocessing; the NCHW view of NHWC pixels is channels-last already."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - MEAN) / STD


def batches(images: Images, labels: Labels, size: int, rng: Rng) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, augmented batches; an incomplete last one is dropped."""
    order = rng.permutation(len(images))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield to_input(augment(images[chosen], rng)), torch.from_numpy(labels[chosen])


# --- Network ----------------------------------------------------------------------------------------------


class Block(nn.Sequential):
    """Convolution 3×3, batch normalisation, ReLU, max pooling."""

    def __init__(self, inputs: int, outputs: int, pool: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(pool)


class Net(nn.Module):
    """Blocks, then two dense layers; returns logits."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(*sizes) for sizes in zip((3, *WIDTHS[:-1]), WIDTHS, POOLS, strict=True))
        )
        side = SIZE // int(np.prod(POOLS))
        self.fc1 = nn.Linear(WIDTHS[-1] * side * side, HIDDEN)
        self.relu_fc = nn.ReLU()
        self.dropout = nn.Dropout(0.2)  # while training only, hence absent from the exported graph
        self.logits = nn.Linear(HIDDEN, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(x).flatten(1)
        return self.logits(self.dropout(self.relu_fc(self.fc1(features))))


def train(net: Net, images: Images, labels: Labels, epochs: int, batch: int = 64) -> None:
    """AdamW under a one-cycle learning rate."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, epochs=epochs, steps_per_epoch=len(images) // batch, pct_start=0.2
    )
    net.train()
    for epoch in range(epochs):
        began, losses = time.perf_counter(), []
        for x, y in batches(images, labels, batch, rng):
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast; the weights stay in float32
                loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - began
        print(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.4f}  {seconds:.0f} s", flush=True)
    net.eval()


@torch.inference_mode()
def accuracy(net: Net, images: Images, labels: Labels) -> float:
    """The share of images whose largest logit is their label's."""
    predicted = [net(to_input(part)).argmax(1) for part in np.array_split(images, max(1, len(images) // 256))]
    return float((torch.cat(predicted).numpy() == labels).mean())


# --- Explanations: how much of them falls on the object ---------------------------------------------------

GradPair = tuple[Tensor, ...]
RELU_RULES: dict[str, Callable[[GradPair, GradPair], GradPair | None]] = {
    "vanilla": lambda grad_in, grad_out: None,  # keep torch's own gradient, g·(x > 0)
    "deconvnet": lambda grad_in, grad_out: (grad_out[0].clamp(min=0.0),),  # g·(g > 0)
    "guided": lambda grad_in, grad_out: (grad_in[0].clamp(min=0.0),),  # g·(g > 0)·(x > 0)
}


def explain(net: Net, x: Tensor, label: int, rule: str) -> NDArray[np.float32]:
    """The map (3, SIZE, SIZE) of one image's target logit, with `rule` in every backward ReLU."""
    hooks = [
        module.register_full_backward_hook(lambda _, grad_in, grad_out: RELU_RULES[rule](grad_in, grad_out))
        for module in net.modules()
        if isinstance(module, nn.ReLU)
    ]
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(net(x)[0, label], x)
    for hook in hooks:
        hook.remove()
    return grad[0].numpy()


def dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """The mask grown by `radius` pixels on every side."""
    grown = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * radius + 1))
    return np.asarray(grown) > 0


class Focus(NamedTuple):
    """How well explanations keep to the object, as means over scenes."""

    inside: float  # share of the positive relevance in the mask
    near: float  # … in the mask grown by 3 pixels: an edge detector's response straddles the outline
    hits: float  # rate at which the strongest pixel lies in the grown mask: the pointing game


def measure_rule(net: Net, rule: str, scenes: Sequence[Scene]) -> Focus:
    """The focus of one rule; the rule "uniform" is chance, a map that is the same everywhere."""
    rows = []
    for scene in scenes:
        near = dilate(scene.mask, 3)
        if rule == "uniform":
            rows.append((scene.mask.mean(), near.mean(), near.mean()))
            continue
        relevance = explain(net, to_input(scene.image[None]), scene.label, rule)
        positive = np.maximum(relevance, 0.0).sum(axis=0)
        positive /= max(positive.sum(), np.finfo(np.float32).tiny)
        hit = near.flat[np.abs(relevance).max(axis=0).argmax()]
        rows.append((positive[scene.mask].sum(), positive[near].sum(), hit))
    return Focus(*np.mean(rows, axis=0))


# --- ONNX -------------------------------------------------------------------------------------------------


Tensors = Mapping[str, Tensor]
NO_TENSORS: Tensors = {}


def export(net: Net, path: Path) -> None:
    """Write the network node by node, so that each layer, BatchNormalization included, keeps its name."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op: str, name: str, source: str, tensors: Tensors = NO_TENSORS, **attributes: Any) -> str:
        """Append one node, named like its output, and its parameters, named after the node."""
        parameters = {f"{name}.{key}": value for key, value in tensors.items()}
        for key, value in parameters.items():
            weights.append(numpy_helper.from_array(value.detach().contiguous().numpy(), key))
        nodes.append(helper.make_node(op, [source, *parameters], [name], name, **attributes))
        return name

    x = "image"
    for i, block in enumerate(net.blocks, start=1):
        bn, pool = block.bn, block.pool.kernel_size
        statistics = {"scale": bn.weight, "bias": bn.bias, "mean": bn.running_mean, "var": bn.running_var}
        x = add("Conv", f"conv{i}", x, {"weight": block.conv.weight}, kernel_shape=[3, 3], pads=[1] * 4)
        x = add("BatchNormalization", f"bn{i}", x, statistics, epsilon=bn.eps)
        x = add("Relu", f"relu{i}", x)
        x = add("MaxPool", f"pool{i}", x, kernel_shape=[pool] * 2, strides=[pool] * 2)
    x = add("Flatten", "flatten", x, axis=1)
    x = add("Gemm", "fc1", x, {"weight": net.fc1.weight, "bias": net.fc1.bias}, transB=1)
    x = add("Relu", "relu_fc", x)
    x = add("Gemm", "logits", x, {"weight": net.logits.weight, "bias": net.logits.bias}, transB=1)
    x = add("Softmax", "probabilities", x, axis=1)

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    probabilities = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", len(CLASSES)])
    graph = helper.make_graph(nodes, "gbp_demo", [image], [probabilities], weights)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, producer_name="gbp", opset_imports=opset, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def run_onnx(path: Path, images: Images) -> NDArray[np.float32]:
    """The probabilities onnxruntime computes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"image": to_input(images).contiguous().numpy()})
    return probabilities


def check_export(net: Net, path: Path, images: Images) -> float:
    """The largest difference between torch's and onnxruntime's probabilities."""
    with torch.inference_mode():
        expected = net(to_input(images)).softmax(1).numpy()
    return float(np.abs(run_onnx(path, images) - expected).max())


def write_sidecar(path: Path) -> None:
    """The labels and the preprocessing, which the ONNX file does not have."""
    labels = ", ".join(f'"{name}"' for name in CLASSES)
    path.write_text(
        f"labels = [{labels}]\n"
        "[preprocess]\n"
        'preset = "unit"\n'
        f"mean = [{MEAN}, {MEAN}, {MEAN}]\n"
        f"std = [{STD}, {STD}, {STD}]\n"
        f"size = {SIZE}\n"
    )


# --- Gallery ----------------------------------------------------------------------------------------------


def write_gallery(model: Path, out: Path) -> None:
    """Held-out scenes, one per class, their masks and an index; fails if the model gets one wrong."""
    folder = out / "scenes"
    folder.mkdir(exist_ok=True)
    rows = []
    for number, (name, seed) in enumerate(GALLERY_SEEDS.items()):
        scene = draw(seed, CLASSES.index(name))
        probability = float(run_onnx(model, scene.image[None])[0, scene.label])
        if probability < 0.9:
            raise SystemExit(f"{name}, seed {seed}: probability {probability:.3f}; choose another seed")
        stem = f"{number:02d}_{name}"
        Image.fromarray(scene.image).save(folder / f"{stem}.png", optimize=True)
        Image.fromarray(scene.mask).save(folder / f"{stem}_mask.png", optimize=True)
        if name == COVER:
            Image.fromarray(scene.image).save(out / "demo.png", optimize=True)
        rows.append(f"| `{stem}.png` | {name} | {seed} | {probability:.4f} |\n")
    (folder / "INDEX.md").write_text(INDEX.format(rows="".join(rows)))


INDEX = """# Held-out scenes

Each picture is `draw(seed, CLASSES.index(label)).image` of [scenes.py](../scenes.py), and `…_mask.png` its
`.mask`: white where the object is.  `train_demo.py` writes them.  No seed here is among those the model was
trained or tested on; they were chosen by eye, for variety, without looking at any explanation.

| picture | label | seed | probability of the label |
| --- | --- | --- | --- |
{rows}"""


def main() -> None:
    """Draw, train, measure, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=20_000, help="training scenes to draw (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over them (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads torch may use (%(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()), help="folder of drawn scenes"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where demo.onnx and the pictures go")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    net = Net().to(memory_format=torch.channels_last)
    train(net, *load_scenes(TRAIN_SEED, args.scenes, args.cache), args.epochs)

    test_images, test_labels = load_scenes(TEST_SEED, 2400, args.cache)
    print(f"parameters {sum(p.numel() for p in net.parameters()):,}")
    print(f"held-out accuracy {accuracy(net, test_images, test_labels):.2%} of {len(test_labels)} scenes")
    scenes = [draw(seed) for seed in range(TEST_SEED, TEST_SEED + 60)]
    for rule in ("uniform", *RELU_RULES):
        focus = measure_rule(net, rule, scenes)
        print(f"{rule:9s}  inside {focus.inside:.3f}  near {focus.near:.3f}  pointing {focus.hits:.3f}")

    model = args.out / "demo.onnx"
    export(net, model)
    write_sidecar(model.with_suffix(".toml"))
    print(f"{model.name}: {model.stat().st_size:,} bytes; ", end="")
    print(f"differs from torch by at most {check_export(net, model, test_images[:256]):.1e}")
    write_gallery(model, args.out)


if __name__ == "__main__":
    main()
