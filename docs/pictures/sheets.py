"""Draw contact sheets: photos under every style, rule and method, to look at before a release.

    python docs/pictures/sheets.py MODEL.onnx PHOTOS… --preprocess imagenet --labels imagenet -o sheets

Each sheet has one photo a row.  A cell is the figure that `gbp explain` writes, captions included, made
smaller.  Sheets of more than a few photos go on in further files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from gbp import RULES, Attribution, Explainer, Top
from gbp.methods import METHODS
from gbp.pictures.paths import find_images
from gbp.rules import OTHER_RULES

STYLES = ("overlay", "gray", "diverging", "rgb", "strip")
#: Pixels of a cell, and photos of a sheet.
CELL, ROWS = 460, 4

Ask = Callable[[Explainer, str], Attribution]


def asks() -> dict[str, Ask]:
    """Name → how a photo is explained: every rule, and every method but the one that needs a layer."""
    found: dict[str, Ask] = {rule: partial(Explainer.explain, rule=rule) for rule in (*RULES, *OTHER_RULES)}
    for method in METHODS.values():
        if not method.needs:
            found[method.name] = method.call
    found["top 3"] = lambda e, photo: e.explain(photo, rule="vanilla", target=Top(3))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--preprocess")
    parser.add_argument("--labels")
    parser.add_argument("--only", nargs="+", help="names of rules and methods")
    parser.add_argument("--styles", nargs="+", default=STYLES, choices=STYLES)
    parser.add_argument("--cell", type=int, default=CELL)
    parser.add_argument("--canvas", choices=("photo", "network"))
    parser.add_argument("-o", "--out", type=Path, default=Path("sheets"))
    arguments = parser.parse_args()
    explainer = Explainer(arguments.model, preprocess=arguments.preprocess, labels=arguments.labels)
    photos = list(find_images(arguments.photos, None))
    arguments.out.mkdir(exist_ok=True, parents=True)
    for name, ask in asks().items():
        if arguments.only and name not in arguments.only:
            continue
        for first in range(0, len(photos), ROWS):
            rows = [
                list(cells(ask(explainer, photo), arguments.styles, arguments.canvas))
                for photo in photos[first : first + ROWS]
            ]
            path = arguments.out / f"{name.replace(' ', '_')}_{1 + first // ROWS:02}.png"
            sheet(rows, arguments.cell).save(path)
            print(path, flush=True)


def cells(found: Attribution, styles: tuple[str, ...], canvas: str | None) -> Iterator[Image.Image]:
    """The figures of one photo in all styles that it has."""
    one = found[0]
    several = one.targets > 1
    for style in styles:
        if style == "strip" or (not several and style in ("gray", *one.panels())):
            yield one.draw(style, canvas=canvas)  # type: ignore[arg-type]


def sheet(rows: list[list[Image.Image]], cell: int) -> Image.Image:
    """The figures in rows, each made as small as `cell`; strips keep twice that width."""
    small = [[fitted(figure, cell) for figure in row] for row in rows]
    width = max(sum(figure.width + 8 for figure in row) for row in small)
    page = Image.new("RGB", (width, sum(max(f.height for f in row) + 8 for row in small)), "#808080")
    y = 0
    for row in small:
        x = 0
        for figure in row:
            page.paste(figure, (x, y))
            x += figure.width + 8
        y += max(figure.height for figure in row) + 8
    return page


def fitted(figure: Image.Image, cell: int) -> Image.Image:
    figure = figure.convert("RGB")
    scale = min(1.0, cell / figure.height, 3 * cell / figure.width)
    return figure.resize(
        (round(figure.width * scale), round(figure.height * scale)), Image.Resampling.LANCZOS
    )


if __name__ == "__main__":
    main()
