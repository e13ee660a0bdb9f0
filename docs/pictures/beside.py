"""Draw one map of gbp with gbp, and with the drawing functions of Captum, pytorch-grad-cam and zennit.

    python docs/pictures/beside.py [MODEL.onnx IMAGE [PRESET]] [--labels NAMES] [-o beside.webp]

All draw the same numbers, so that the pictures differ by nothing but the drawing.  By default it is a map of
the demo model.  Libraries that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gbp import Explainer, Sample
from gbp.pictures.figure import Panel, figure

ROOT = Path(__file__).resolve().parents[2]
HEIGHT = 320


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default=str(ROOT / "models" / "demo.onnx"))
    parser.add_argument("image", nargs="?", default=str(ROOT / "models" / "scenes" / "02_fish.png"))
    parser.add_argument("preset", nargs="?")
    parser.add_argument("--labels")
    parser.add_argument("-o", "--out", default=str(Path(__file__).with_name("beside.webp")))
    arguments = parser.parse_args()
    explainer = Explainer(arguments.model, preprocess=arguments.preset, labels=arguments.labels)
    found = explainer.explain(arguments.image)[0]
    if found.image is None:
        raise SystemExit("the sample is no picture")
    panels = [
        Panel(tall(found.overlay()), "gbp: overlay"),
        Panel(tall(found.diverging()), "gbp: diverging"),
        Panel(tall(found.rgb()), "gbp: rgb"),
    ]
    for title, draw in PEERS.items():
        try:
            panels.append(Panel(tall(draw(found)), title))
        except ImportError as error:
            print(f"{title}: {error}")
    remarks = f"The same map of guided backpropagation, {found.label()}, drawn by each library as by default."
    figure(panels, remarks).image().save(arguments.out, quality=90)
    print("wrote", arguments.out)


def tall(image: Image.Image) -> Image.Image:
    """At the height of a panel; a few pixels as squares."""
    small = image.height < HEIGHT
    method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((round(image.width * HEIGHT / image.height), HEIGHT), method)


def pixels(found: Sample) -> NDArray[np.float64]:
    """The network's input as a picture, (H, W, 3), 0 to 1."""
    assert found.image is not None
    return np.asarray(found.image.convert("RGB"), np.float64) / 255


def captum(found: Sample, method: str, sign: str) -> Image.Image:
    from captum.attr import visualization
    from matplotlib.figure import Figure

    planes = found.planes().transpose(1, 2, 0)
    canvas, _ = visualization.visualize_image_attr(
        planes,
        pixels(found),
        method,
        sign,
        plt_fig_axis=axes(Figure(figsize=(3, 3), dpi=160)),
        use_pyplot=False,
    )
    buffer = io.BytesIO()
    canvas.savefig(buffer, bbox_inches="tight", pad_inches=0)
    return Image.open(buffer)


def axes(canvas: Any) -> tuple[Any, Any]:
    return canvas, canvas.subplots()


def grad_cam(found: Sample) -> Image.Image:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    m = np.abs(found.planes()).max(axis=0)
    return Image.fromarray(show_cam_on_image(pixels(found).astype(np.float32), m / m.max(), use_rgb=True))


def deprocessed(found: Sample) -> Image.Image:
    from pytorch_grad_cam.utils.image import deprocess_image

    return Image.fromarray(deprocess_image(found.planes().transpose(1, 2, 0)))


def zennit(found: Sample) -> Image.Image:
    from zennit.image import palette

    # As `imgify(m, symmetric=True, cmap="coldnhot")`, which zennit 0.5 does not do with Pillow 13.
    m = found.planes().sum(axis=0)
    levels = np.clip((m / np.abs(m).max() + 1) / 2 * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(np.asarray(palette("coldnhot"), np.uint8)[levels])


PEERS: dict[str, Callable[[Sample], Image.Image]] = {
    "Captum: blended_heat_map": lambda s: captum(s, "blended_heat_map", "absolute_value"),
    "Captum: heat_map": lambda s: captum(s, "heat_map", "all"),
    "grad-cam: show_cam_on_image": grad_cam,
    "grad-cam: deprocess_image": deprocessed,
    "zennit: coldnhot": zennit,
}

if __name__ == "__main__":
    main()
