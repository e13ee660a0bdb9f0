"""`Sample`: the explanation of one sample, with its class names and pictures."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import IO, Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..pictures.drawing import Panel, Reduction, Style, reduce
from ..pictures.files import save_figure, save_picture, suffix_of
from ..pictures.look import Look, LookOptions
from ..questions.targets import At
from .explained import Explained
from .figures import draw_panel, figure_of, metadata_of


class Drawable(ABC):
    """The methods that a sample shares with an attribution of one sample."""

    @abstractmethod
    def _sample(self) -> Sample:
        """The sample.  Raises `InputError` where there are several."""

    def label(self) -> str:
        """The name of the explained class, "class 7" where there are no labels; or of what else was asked.

        Raises `InputError` where several targets were explained; `only` chooses one.
        """
        sample = self._sample()
        return sample.question or sample.name_of(sample.the_target())

    def top(self, k: int = 5) -> list[tuple[int, str, float]]:
        """The highest scores, best first, as (class, label, score).  Equal scores are ordered by class.

        Parameters
        ----------
        k
            How many.
        """
        sample = self._sample()
        best = np.argsort(-sample.scores, kind="stable")[:k]
        return [(int(c), sample.name_of(int(c)), float(sample.scores[c])) for c in best]

    def gray(self, **look: Unpack[LookOptions]) -> Image.Image:
        """Draw the norm over the channels, smoothed, white on black (mode "L"), as large as the map.

        Parameters
        ----------
        look
            How it is drawn: fields of `pictures.look.Look`.

        Raises
        ------
        InputError
            Where the input is not an image, and where there are several samples or targets.
        """
        return draw_panel(self._sample(), "gray", Look(**look)).image

    def diverging(self, **look: Unpack[LookOptions]) -> Image.Image:
        """Draw the sum of the channels, smoothed: positive red, negative blue, 0 white.

        Parameters
        ----------
        look
            As for `gray`.

        Raises
        ------
        InputError
            As `gray`.
        """
        return draw_panel(self._sample(), "diverging", Look(**look)).image

    def overlay(self, **look: Unpack[LookOptions]) -> Image.Image:
        """Draw the norm over the channels, smoothed, as heat over the whole photo at its own resolution.

        A frame shows what the network saw of the photo.  Where there is none, it is drawn over what the
        network saw.

        Parameters
        ----------
        look
            As for `gray`.

        Raises
        ------
        InputError
            As `gray`, and where the image is unknown.
        """
        return draw_panel(self._sample(), "overlay", Look(**look)).image

    def rgb(self, **look: Unpack[LookOptions]) -> Image.Image:
        """Draw the map in its own colours around mid-grey, as in Springenberg et al. 2014.

        Parameters
        ----------
        look
            As for `gray`.

        Raises
        ------
        InputError
            As `gray`, and unless the input has 1 or 3 channels.
        """
        return draw_panel(self._sample(), "rgb", Look(**look)).image

    def strip(self, **look: Unpack[LookOptions]) -> Image.Image:
        """Draw the photo beside its maps, with captions: one target in every style, K targets in one each.

        Parameters
        ----------
        look
            As for `gray`.
        """
        return self.draw("strip", **look)

    def draw(self, style: Style | None = None, **look: Unpack[LookOptions]) -> Image.Image:
        """Draw a figure in the style of this name: the picture with captions, colour bar and remarks.

        The method of the style's name draws the picture alone.

        Parameters
        ----------
        style
            "overlay", "gray", "diverging", "rgb" or "strip"; by default "overlay" where the image is known,
            else "gray".
        look
            As for `gray`.

        Raises
        ------
        InputError
            As the method of that name.
        """
        return figure_of(self._sample(), style, Look(**look)).image()

    def show(self, style: Style = "strip", **look: Unpack[LookOptions]) -> None:
        """Show a figure: in a notebook below the cell, elsewhere in the system's viewer of images.

        Parameters
        ----------
        style, look
            As for `draw`.

        Raises
        ------
        InputError
            As `draw`.
        """
        image = self.draw(style, **look)
        try:
            from IPython.core.getipython import get_ipython
            from IPython.display import display
        except ImportError:
            image.show()
            return
        if get_ipython() is None:
            image.show()
        else:
            display(image)

    def plot(self, ax: Any = None, style: Panel | None = None, **look: Unpack[LookOptions]) -> Any:
        """Draw into axes of Matplotlib: the picture, the class as its title, and no ticks.

        Parameters
        ----------
        ax
            Matplotlib's Axes; by default the current ones.
        style, look
            As for `draw`, any style but "strip".

        Returns
        -------
        The axes.

        Raises
        ------
        InputError
            As `draw`, and where Matplotlib is not installed (extra gbp-explain[plot]).
        """
        sample = self._sample()
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError:
                raise InputError(
                    "plot needs Matplotlib, which is not installed.", hint="Install gbp-explain[plot]."
                ) from None
            ax = pyplot.gca()
        image = draw_panel(sample, style or sample.panels()[0], Look(**look)).image
        ax.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
        ax.set_title(f"{sample.title}: {sample.caption()}", wrap=True)
        ax.set_axis_off()
        return ax

    def save(
        self,
        file: str | os.PathLike[str] | IO[bytes],
        style: Style | None = None,
        *,
        format: str | None = None,
        bare: bool = False,
        **look: Unpack[LookOptions],
    ) -> None:
        """Write one figure, or everything as arrays.

        The file's metadata say which model made the map, and how: its digest, the version of gbp,
        preprocessing, target, rule and options, as JSON.

        Parameters
        ----------
        file
            A path (.png, .jpg, .jpeg, .webp, .pdf, .svg, .npz) or a binary file object.  An existing file is
            replaced.  A path gets the complete file or stays as it was.
        style
            As for `draw`.
        format
            "png", "jpg", "jpeg", "webp", "pdf", "svg" or "npz"; by default the path's suffix.
        bare
            Whether the picture alone is written, without captions and colour bar.
        look
            As for `gray`.

        Raises
        ------
        InputError
            For an unknown format, or a file that cannot be written.
        """
        suffix_of(file, format)
        sample, chosen = self._sample(), Look(**look)
        metadata = metadata_of([sample], chosen)
        if not bare:
            save_figure(figure_of(sample, style, chosen), file, format, metadata)
            return
        if style == "strip":
            raise InputError("a strip has captions.", hint="Leave bare out, or choose another style.")
        save_picture(draw_panel(sample, style or sample.panels()[0], chosen).image, file, format, metadata)

    def to_dict(self) -> dict[str, Any]:
        """The explained classes and the highest scores, in JSON's types.  `gbp explain --json` prints them.

        Keys: "rule"; "method" and "details", where a method made the map; "explained", with class, label,
        score and probability of each target; "top", with the same for the five highest scores; "provenance":
        the model, its digest, the version of gbp and the preprocessing.  A probability is None where the
        model has no head.
        """
        sample = self._sample()
        return {
            "rule": sample.rule,
            **sample.made_by(),
            "explained": sample.explained_rows(),
            "top": [sample.row(c) for c, _, _ in self.top(5)],
            "provenance": sample.provenance.to_dict() if sample.provenance else None,
        }

    def _repr_png_(self) -> bytes | None:
        """The strip as PNG, for notebooks; None where the sample cannot be drawn."""
        try:
            buffer = io.BytesIO()
            save_picture(self.strip(), buffer, "png")
        except InputError:
            return None
        return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class Sample(Explained, Drawable):
    """One sample of an `Attribution`.

    Parameters
    ----------
    map
        float32, shaped like one input; (K, …) where K targets were explained.
    scores
        float32 (classes,).
    target
        The class that was explained, int; or int64 (K,).
    rule, layout, labels, channels, head, score_shape, method, depends_on_image, provenance, notes
        As in `Attribution`.
    image
        The network's input as a picture, mode RGB or L, as large as the map; None where it cannot be drawn.
    details
        The method's facts about this sample.
    photo
        The whole photo; None where the sample came as an array.
    """

    def __repr__(self) -> str:
        names = ", ".join(row["label"] for row in self.explained_rows())
        return f"<Sample: {names}, {self.title}>"

    def _sample(self) -> Sample:
        return self

    def only(self, target: int | At) -> Sample:
        """The same sample with the map of one class alone.

        Parameters
        ----------
        target
            One of the explained classes.

        Raises
        ------
        InputError
            For another class.
        """
        number = self._classes.number(target) if isinstance(target, At) else target
        for one in self.each_target():
            if one.target == number:
                return one
        known = ", ".join(map(str, np.atleast_1d(self.target)))
        raise InputError(f"class {target} was not explained.", supported=known)

    def reduce(self, how: Reduction = "abs-max") -> NDArray[np.float32]:
        """Reduce the channels of each pixel to one number, float32 (H, W), for the only target.

        Parameters
        ----------
        how
            As for `Attribution.reduce`.

        Raises
        ------
        InputError
            As `Attribution.reduce`, and where several targets were explained.
        """
        return reduce(self.planes(), how)
