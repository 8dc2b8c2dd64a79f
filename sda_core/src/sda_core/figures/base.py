"""Pictures, and what all figures share."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import matplotlib as mpl
import numpy as np
from matplotlib.animation import AbstractMovieWriter, Animation
from matplotlib.figure import Figure
from PIL import Image

from sda_core.io.files import replace_file
from sda_core.method import Problem

#: Colours that keep apart in print and for colour-blind readers (Okabe & Ito, 2008).
TRUTH, POSTERIOR, REFERENCE, OBSERVED = "#000000", "#0072B2", "#D55E00", "#009E73"
BASELINE = "#CC79A7"

#: Colour maps: values about zero (Crameri, 2018), and magnitudes. Both are perceptually uniform.
DIVERGING, SEQUENTIAL = "berlin", "viridis"

STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}

#: Frames of animations: their resolution, and how many are shown in a second.
_FRAME_DPI, _FRAMES_PER_SECOND = 100, 8

#: From how many frames an animation's palette is made.
_PALETTE_FRAMES = 8


class _GIFWriter(AbstractMovieWriter):
    """Writes frames that share one palette; matplotlib's has one for each, and colours flicker."""

    def setup(self, fig: Figure, outfile: Any, dpi: float | None = None) -> None:
        super().setup(fig, outfile, dpi)
        self._images: list[Image.Image] = []

    def grab_frame(self, **savefig_kwargs: Any) -> None:
        data = BytesIO()
        self.fig.savefig(data, format="rgba", dpi=self.dpi, **savefig_kwargs)
        frame = Image.frombytes("RGBA", self.frame_size, data.getvalue())
        self._images.append(frame.convert("RGB"))

    def finish(self) -> None:
        width, height = self._images[0].size
        chosen = self._images[:: math.ceil(len(self._images) / _PALETTE_FRAMES)]
        sheet = Image.new("RGB", (width, height * len(chosen)))
        for i, image in enumerate(chosen):
            sheet.paste(image, (0, i * height))
        palette = sheet.quantize()
        first, *others = (
            image.quantize(palette=palette, dither=Image.Dither.NONE) for image in self._images
        )
        first.save(
            self.outfile,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=round(1000 / self.fps),
            loop=0,
        )


@attrs.frozen(kw_only=True)
class Picture:
    """A figure or an animation with its caption.

    Attributes:
        name: Name of its file in ``figures/``, without the ending.
        caption: What is shown, for the report.
        figure: The figure or animation.
    """

    name: str
    caption: str
    figure: Figure | Animation

    def save(self, folder: Path) -> Path:
        """Write a PNG, or a GIF for an animation, and rename it into place; give its path."""
        with mpl.rc_context(STYLE):
            if isinstance(self.figure, Figure):
                path = folder / f"{self.name}.png"
                with replace_file(path) as temporary:
                    self.figure.savefig(temporary, format="png", bbox_inches="tight")
                return path
            path = folder / f"{self.name}.gif"
            with replace_file(path) as temporary:
                self.figure.save(
                    str(temporary), writer=_GIFWriter(_FRAMES_PER_SECOND), dpi=_FRAME_DPI
                )
            return path


def with_units(name: str, units: str) -> str:
    """A quantity with its unit, if it has one."""
    return name if units == "1" else f"{name} [{units}]"


def time_label(problem: Problem) -> str:
    """Label of a time axis."""
    return with_units("time", problem.system.spec.time_units)


def state_times(problem: Problem) -> np.ndarray:
    """Times of the states, (L,)."""
    return np.arange(problem.length) * problem.system.spec.time_step
