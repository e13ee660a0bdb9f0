"""Synthetic scenes for the demo model: one object to find in a cluttered picture, with its exact mask.

A scene is built in three layers, back to front: a textured background, plain distractors (blobs, bars,
lines, squiggles; never a class shape), and the one object whose shape is the label.  Everything follows
from the seed.  Only numpy and Pillow are needed.

    scene = draw(seed=7)                # scene.image, scene.mask, scene.label
    scene = draw(seed=7, label=3)       # the same surroundings, but showing CLASSES[3]
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 96  # pixels per side of a scene
SUPERSAMPLE = 4  # layers are drawn this much larger and reduced, which antialiases their edges
OBJECT_SIZE = (26.0, 45.0)  # pixels across the object

Rng = np.random.Generator
Points = NDArray[np.float64]  # (n, 2) vertices
Field = NDArray[np.float32]  # (SIZE, SIZE) values in [0, 1]
Color = NDArray[np.float64]  # RGB in [0, 1]
Span = tuple[float, float]  # first and last angle of an arc, in degrees


class Scene(NamedTuple):
    """One picture, the pixels of the object that decides its class, and the index of that class."""

    image: NDArray[np.uint8]  # (SIZE, SIZE, 3)
    mask: NDArray[np.bool_]  # (SIZE, SIZE)
    label: int


def draw(seed: int, label: int | None = None) -> Scene:
    """Draw scene number `seed`; `label` overrides the class the seed would choose."""
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(len(CLASSES)))  # always drawn, so that `label` leaves the surroundings alone
    label = drawn if label is None else label

    image, palette = _background(rng)
    image = _paste(image, _distractors(palette, rng), shadow=float(rng.uniform(0.0, 0.3)))
    noise = rng.normal(0.0, rng.uniform(0.0, 0.025), image.shape)

    layer = _object(label, palette, rng)
    image = _paste(image, layer, shadow=float(rng.uniform(0.2, 0.5)))
    pixels = np.clip(255.0 * (image + noise) + 0.5, 0, 255).astype(np.uint8)
    return Scene(pixels, np.asarray(layer)[..., 3] >= 128, label)


# --- Layers -----------------------------------------------------------------------------------------------


def _new_layer() -> Image.Image:
    return Image.new("RGBA", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE))


def _paste(image: NDArray[np.float32], layer: Image.Image, shadow: float) -> NDArray[np.float32]:
    """Composite an RGBA layer, and the soft shadow it casts, over an image in [0, 1]."""
    rgba = np.asarray(layer, np.float32) / 255.0
    alpha = rgba[..., 3:]
    blurred = layer.getchannel("A").filter(ImageFilter.GaussianBlur(1.5))
    shade = np.roll(np.asarray(blurred, np.float32) / 255.0, 1, axis=(0, 1))[..., None]
    return alpha * rgba[..., :3] + (1.0 - alpha) * (1.0 - shadow * shade) * image


# --- Colours ----------------------------------------------------------------------------------------------


def _color(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


def _contrasting(others: list[Color], rng: Rng) -> Color:
    """The vivid candidate whose nearest neighbour among `others` is farthest away."""
    candidates = [_color(rng, (0.35, 1.0), (0.55, 1.0)) for _ in range(6)]
    return max(candidates, key=lambda c: min(float(np.linalg.norm(c - other)) for other in others))


def _mix(a: Color, b: Color | float, amount: float) -> Color:
    return (1.0 - amount) * a + amount * b


def _rgba(color: Color) -> tuple[int, int, int, int]:
    r, g, b = (int(255.0 * c + 0.5) for c in color)
    return r, g, b, 255


# --- Background: two textures, patched together -----------------------------------------------------------

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def _rotated_axes(rng: Rng) -> tuple[Field, Field]:
    angle = rng.uniform(0.0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * _X + sin * _Y, cos * _Y - sin * _X


def _wave(phase: Field, hardness: float) -> Field:
    """A wave between 0 and 1: a sine at hardness 1, stripes with antialiased edges at 3 and more."""
    return np.clip(0.5 + 0.5 * hardness * np.sin(phase), 0.0, 1.0)


def _noise(rng: Rng, cells: int) -> Field:
    """Three octaves of smooth noise, the coarsest with `cells` cells across the scene."""
    total = np.zeros((SIZE, SIZE), np.float32)
    for octave in range(3):
        n = cells << octave
        grid = Image.fromarray(rng.random((n, n), np.float32))
        total += np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / (1 << octave)
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low)


def _gradient(rng: Rng) -> Field:
    u, _ = _rotated_axes(rng)
    return (u - u.min()) / (u.max() - u.min())


def _clouds(rng: Rng) -> Field:
    return _noise(rng, int(rng.integers(3, 13)))


def _stripes(rng: Rng) -> Field:
    u, _ = _rotated_axes(rng)
    bend = rng.choice([0.0, 2.5]) * _noise(rng, 3)
    return _wave(2.0 * np.pi * u / rng.uniform(6.0, 20.0) + bend, rng.uniform(1.0, 4.0))


def _checkers(rng: Rng) -> Field:
    u, v = _rotated_axes(rng)
    frequency = np.pi / rng.uniform(5.0, 13.0)
    a, b = _wave(frequency * u, 4.0), _wave(frequency * v, 4.0)
    return a * (1.0 - b) + b * (1.0 - a)


def _dots(rng: Rng) -> Field:
    u, v = _rotated_axes(rng)
    frequency = 2.0 * np.pi / rng.uniform(8.0, 16.0)
    return np.clip(1.5 * (np.cos(frequency * u) + np.cos(frequency * v) - 0.6), 0.0, 1.0)


TEXTURES: tuple[Callable[[Rng], Field], ...] = (_gradient, _clouds, _clouds, _stripes, _checkers, _dots)


def _texture(colors: list[Color], rng: Rng) -> NDArray[np.float32]:
    """One texture between two of the colours, over gentle clouds that keep it from looking flat."""
    first, second = (colors[i] for i in rng.choice(len(colors), 2, replace=False))
    field = TEXTURES[rng.integers(len(TEXTURES))](rng)[..., None]
    light = 0.75 + 0.25 * _noise(rng, 4)[..., None]
    return (first + field * (second - first)).astype(np.float32) * light


def _background(rng: Rng) -> tuple[NDArray[np.float32], list[Color]]:
    """A patchwork of two textures, and the colours it was made from."""
    palette = [_color(rng, (0.1, 0.7), (0.25, 0.95)) for _ in range(3)]
    seam = _noise(rng, 2)[..., None]
    patch = np.clip(12.0 * (seam - rng.uniform(0.35, 0.65)) + 0.5, 0.0, 1.0)
    return patch * _texture(palette, rng) + (1.0 - patch) * _texture(palette, rng), palette


# --- Distractors: plain shapes that mean nothing ----------------------------------------------------------


def _blob(size: float, rng: Rng) -> Points:
    """A closed wobbly outline."""
    t = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    radius = 1.0 + sum(rng.uniform(-0.5, 0.5) / k * np.sin(k * t + rng.uniform(0.0, 6.3)) for k in (1, 2, 3))
    return 0.4 * size * radius[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)


def _bar(size: float, rng: Rng) -> Points:
    """A rectangle, from square to slender."""
    half_width, half_height = 0.5 * size, 0.5 * size * rng.uniform(0.2, 1.0)
    return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * (half_width, half_height)


def _squiggle(size: float, rng: Rng) -> Points:
    """An open wavy line; a straight one now and then."""
    t = np.linspace(-1.0, 1.0, 48)
    wave = rng.choice([0.0, 0.2, 0.4]) * np.sin(rng.uniform(3.0, 9.0) * t + rng.uniform(0.0, 6.3))
    return size * np.stack([t, wave], axis=1)


def _distractors(palette: list[Color], rng: Rng) -> Image.Image:
    layer = _new_layer()
    pen = ImageDraw.Draw(layer)
    for _ in range(rng.integers(5, 12)):
        own = _color(rng, (0.2, 1.0), (0.3, 1.0))
        fill = _rgba(_mix(palette[rng.integers(3)], own, rng.uniform(0.5, 1.0)))
        size = float(rng.uniform(5.0, 22.0))
        place = _rotation(rng.uniform(0.0, 2.0 * np.pi)), rng.uniform(0.0, SIZE, 2)
        kind = rng.choice(["blob", "bar", "squiggle"])
        if kind == "squiggle":
            width = int(SUPERSAMPLE * rng.uniform(1.0, 3.5))
            pen.line(_on_canvas(_squiggle(size, rng), *place), fill, width, joint="curve")
        else:
            outline = _blob(size, rng) if kind == "blob" else _bar(size, rng)
            pen.polygon(_on_canvas(outline, *place), fill)
    return layer.reduce(SUPERSAMPLE)


def _rotation(angle: float) -> Points:
    """The matrix that turns row vectors by `angle`, clockwise on the screen."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _on_canvas(points: Points, linear: Points, centre: Points) -> list[tuple[float, float]]:
    """Vertices in scene pixels, after `points @ linear + centre`, as Pillow wants them on a layer."""
    return [(x, y) for x, y in (SUPERSAMPLE * (points @ linear + centre)).tolist()]


# --- Objects: the shapes that decide the class ------------------------------------------------------------


class Brush:
    """Fills outlines given in an object's own coordinates: the square [-1, 1]², y pointing down.

    Four tones of one object are on offer: `main`, its shades `dark` and `light`, and a contrasting `accent`.
    """

    def __init__(self, layer: Image.Image, place: tuple[Points, Points], main: Color, accent: Color) -> None:
        self._pen = ImageDraw.Draw(layer)
        self._place = place  # the linear map to scene pixels, and the centre
        self.main, self.accent = _rgba(main), _rgba(accent)
        self.dark, self.light = _rgba(_mix(main, 0.0, 0.4)), _rgba(_mix(main, 1.0, 0.55))

    def fill(self, points: Points | list[tuple[float, float]], tone: tuple[int, int, int, int]) -> None:
        """Fill one closed outline."""
        self._pen.polygon(_on_canvas(np.asarray(points, np.float64), *self._place), tone)

    def erase(self, points: Points) -> None:
        """Cut a hole: the scene behind shows through, and the hole is not part of the mask."""
        self.fill(points, (0, 0, 0, 0))


def _arc(x: float, y: float, rx: float, ry: float | None = None, span: Span = (0.0, 360.0)) -> Points:
    """Vertices along an ellipse (a circle without `ry`); degrees run clockwise on screen, from the right."""
    t = np.radians(np.linspace(*span, 49))
    return np.stack([x + rx * np.cos(t), y + (rx if ry is None else ry) * np.sin(t)], axis=1)


def _band(x: float, y: float, outer: float, inner: float, span: Span) -> Points:
    """A thick circular arc."""
    return np.concatenate([_arc(x, y, outer, outer, span), _arc(x, y, inner, inner, span)[::-1]])


def _star(brush: Brush, rng: Rng) -> None:
    t = np.radians(36.0 * np.arange(11) - 90.0)
    radius = np.where(np.arange(11) % 2 == 0, 1.0, rng.uniform(0.4, 0.48))
    rim = radius[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)
    brush.fill(rim, brush.main)
    for i in range(0, 10, 2):  # one lit facet per point
        brush.fill([(0.0, 0.0), *rim[i : i + 2].tolist()], brush.light)


def _ring(brush: Brush, rng: Rng) -> None:
    brush.fill(_arc(0.0, 0.25, 0.75), brush.main)
    brush.fill(_band(0.0, 0.25, 0.7, 0.6, (150.0, 250.0)), brush.light)
    brush.erase(_arc(0.0, 0.25, rng.uniform(0.46, 0.54)))
    brush.fill([(-0.25, -1.0), (0.25, -1.0), (0.5, -0.75), (0.0, -0.25), (-0.5, -0.75)], brush.accent)
    brush.fill([(-0.2, -0.75), (0.2, -0.75), (0.0, -0.3)], brush.light)


def _heart(brush: Brush, rng: Rng) -> None:
    t = np.linspace(0.0, 2.0 * np.pi, 80)
    x = np.sin(t) ** 3
    y = -(13.0 * np.cos(t) - 5.0 * np.cos(2.0 * t) - 2.0 * np.cos(3.0 * t) - np.cos(4.0 * t)) / 16.0 - 0.1
    brush.fill(np.stack([x, y], axis=1), brush.main)
    brush.fill(_arc(-0.5, -0.5, 0.22, rng.uniform(0.12, 0.2)), brush.light)


def _moon(brush: Brush, rng: Rng) -> None:
    bite = rng.uniform(0.6, 0.9)  # the centre of the disc cut away; its rim meets the horns at (0, ±1)
    horn = float(np.degrees(np.arctan2(1.0, -bite)))
    radius = float(np.hypot(1.0, bite))
    outer = _arc(0.0, 0.0, 1.0, 1.0, (90.0, 270.0))
    inner = _arc(bite, 0.0, radius, radius, (360.0 - horn, horn))
    brush.fill(np.concatenate([outer, inner]) + np.array([0.45, 0.0]), brush.main)


def _arrow(brush: Brush, rng: Rng) -> None:
    half, neck, barb = rng.uniform(0.17, 0.24), rng.uniform(0.0, 0.2), rng.uniform(0.6, 0.75)
    upper = np.array([(-1.0, 0.0), (-1.0, -half), (neck, -half), (neck, -barb), (1.0, 0.0)])
    brush.fill(upper, brush.main)
    brush.fill(upper * (1.0, -1.0), brush.dark)


def _key(brush: Brush, rng: Rng) -> None:
    brush.fill([(-0.3, -0.11), (1.0, -0.11), (1.0, 0.11), (-0.3, 0.11)], brush.main)
    for x in (0.45, 0.78):
        brush.fill([(x, 0.0), (x + 0.2, 0.0), (x + 0.2, rng.uniform(0.35, 0.45)), (x, 0.4)], brush.main)
    brush.fill(_arc(-0.55, 0.0, 0.45), brush.main)
    brush.fill(_band(-0.55, 0.0, 0.42, 0.34, (160.0, 280.0)), brush.light)
    brush.erase(_arc(-0.6, 0.0, rng.uniform(0.18, 0.26)))


def _mushroom(brush: Brush, rng: Rng) -> None:
    waist = rng.uniform(0.2, 0.28)
    stem = [(-waist, -0.1), (waist, -0.1), (0.36, 0.9), (0.2, 1.0), (-0.2, 1.0), (-0.36, 0.9)]
    brush.fill(stem, brush.light)
    brush.fill(_arc(0.0, 0.05, 0.98, 0.2, (0.0, 180.0)), brush.dark)
    brush.fill(_arc(0.0, 0.06, 1.0, rng.uniform(0.9, 1.05), (180.0, 360.0)), brush.main)
    for x, y, r in ((-0.5, -0.22, 0.17), (0.08, -0.52, 0.19), (0.55, -0.18, 0.14)):
        brush.fill(_arc(x, y, r), brush.light)


def _fish(brush: Brush, rng: Rng) -> None:
    height = rng.uniform(0.48, 0.58)
    brush.fill([(-0.45, 0.0), (-1.0, -0.55), (-0.85, 0.0), (-1.0, 0.55)], brush.dark)
    brush.fill([(-0.3, -0.3), (0.0, -0.8), (0.45, -0.35)], brush.dark)
    brush.fill(_arc(0.2, 0.0, 0.8, height), brush.main)
    brush.fill(_arc(0.2, 0.0, 0.8, height, (20.0, 160.0)), brush.light)
    brush.fill([(0.15, -0.12), (-0.25, 0.12), (0.15, 0.22)], brush.dark)
    brush.fill(_arc(0.62, -0.12, 0.13), (255, 255, 255, 255))
    brush.fill(_arc(0.65, -0.12, 0.07), (20, 20, 30, 255))


def _house(brush: Brush, rng: Rng) -> None:
    brush.fill([(0.35, -0.9), (0.62, -0.9), (0.62, 0.0), (0.35, 0.0)], brush.dark)
    brush.fill([(-0.75, -0.2), (0.75, -0.2), (0.75, 1.0), (-0.75, 1.0)], brush.light)
    brush.fill([(-1.0, -0.1), (0.0, rng.uniform(-1.0, -0.9)), (1.0, -0.1)], brush.main)
    door = rng.uniform(-0.5, -0.4)
    brush.fill([(door, 0.3), (door + 0.4, 0.3), (door + 0.4, 1.0), (door, 1.0)], brush.dark)
    brush.fill([(0.15, 0.2), (0.55, 0.2), (0.55, 0.6), (0.15, 0.6)], brush.accent)


def _lightning(brush: Brush, rng: Rng) -> None:
    top, tip = rng.uniform(0.4, 0.55), rng.uniform(-0.45, -0.3)
    bolt = [(-0.15, -1.0), (top, -1.0), (0.12, -0.3), (0.6, -0.3), (tip, 1.0), (-0.08, 0.1), (-0.6, 0.1)]
    brush.fill(bolt, brush.main)
    brush.fill([bolt[1], bolt[2], (0.0, -0.1), (0.35, -1.0)], brush.light)
    brush.fill([bolt[3], bolt[4], bolt[5], (0.3, -0.2)], brush.light)


def _umbrella(brush: Brush, rng: Rng) -> None:
    brush.fill([(-0.06, -1.0), (0.06, -1.0), (0.06, 0.75), (-0.06, 0.75)], brush.dark)
    brush.fill(_band(0.21, 0.73, 0.27, 0.15, (0.0, 180.0)), brush.dark)
    height = rng.uniform(0.82, 0.92)
    panels = ((-1.0, -0.34, brush.main), (-0.34, 0.34, brush.light), (0.34, 1.0, brush.main))
    for left, right, tone in panels:  # each runs up its right seam, down its left one, along its scallop
        right_seam = _arc(0.0, 0.0, right, height, (0.0, -90.0))
        left_seam = _arc(0.0, 0.0, left, height, (-90.0, 0.0))
        scallop = _arc((left + right) / 2.0, 0.0, (right - left) / 2.0, 0.14, (180.0, 360.0))
        brush.fill(np.concatenate([right_seam, left_seam, scallop]), tone)


def _cup(brush: Brush, rng: Rng) -> None:
    foot = rng.uniform(0.4, 0.5)
    brush.fill(_band(0.55, 0.1, 0.45, 0.26, (-90.0, 90.0)), brush.dark)
    brush.fill([(-0.8, -0.6), (0.6, -0.6), (foot, 0.85), (-0.2 - foot, 0.85)], brush.main)
    brush.fill(_arc(-0.1, 0.85, foot + 0.1, 0.12), brush.main)
    brush.fill([(-0.65, -0.3), (-0.45, -0.3), (-0.4, 0.7), (-0.52, 0.7)], brush.light)
    brush.fill(_arc(-0.1, -0.6, 0.7, 0.2), brush.light)
    brush.fill(_arc(-0.1, -0.58, 0.58, 0.13), brush.dark)


class _Shape(NamedTuple):
    paint: Callable[[Brush, Rng], None]
    tilt: float  # the object is turned by at most this many degrees either way


_SHAPES: dict[str, _Shape] = {
    "arrow": _Shape(_arrow, 180.0),
    "cup": _Shape(_cup, 20.0),
    "fish": _Shape(_fish, 30.0),
    "heart": _Shape(_heart, 30.0),
    "house": _Shape(_house, 15.0),
    "key": _Shape(_key, 180.0),
    "lightning": _Shape(_lightning, 20.0),
    "moon": _Shape(_moon, 45.0),
    "mushroom": _Shape(_mushroom, 25.0),
    "ring": _Shape(_ring, 45.0),
    "star": _Shape(_star, 36.0),
    "umbrella": _Shape(_umbrella, 30.0),
}

CLASSES: tuple[str, ...] = tuple(_SHAPES)


def _object(label: int, palette: list[Color], rng: Rng) -> Image.Image:
    """The object on its own layer: anywhere, turned, mirrored and stretched a little, well visible."""
    shape = _SHAPES[CLASSES[label]]
    size = rng.uniform(*OBJECT_SIZE)
    stretch = rng.uniform(0.9, 1.1)
    mirror = rng.choice([-1.0, 1.0])
    turn = np.radians(rng.uniform(-1.0, 1.0) * shape.tilt)
    linear = 0.5 * size * np.diag([mirror * stretch, 1.0 / stretch]) @ _rotation(turn)
    centre = rng.uniform(0.55 * size, SIZE - 0.55 * size, 2)
    main = _contrasting(palette, rng)
    accent = _contrasting([*palette, main], rng)
    layer = _new_layer()
    shape.paint(Brush(layer, (linear, centre), main, accent), rng)
    return layer.reduce(SUPERSAMPLE)
