"""Quantities on a plane over time, as images to be drawn.

Images are (n, m) arrays whose first axis is the horizontal one, NaN where nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
from torch import Tensor

from sda_core.figures.base import with_units
from sda_core.system import SystemSpec


@attrs.frozen(kw_only=True)
class Plane:
    """Where maps lie.

    Attributes:
        extent: Edges of the grid: left, right, bottom, top.
        labels: Labels of the horizontal and the vertical axis.
    """

    extent: tuple[float, float, float, float]
    labels: tuple[str, str] = ("x", "y")

    @property
    def ratio(self) -> float:
        """Height over width."""
        left, right, bottom, top = self.extent
        return (top - bottom) / (right - left)

    @classmethod
    def of(cls, spec: SystemSpec) -> Plane:
        """The plane of a system with two uniform grid axes; the first is horizontal."""
        edges = []
        for axis in spec.axes:
            half = (axis.values[-1] - axis.values[0]) / (len(axis.values) - 1) / 2
            edges += [float(axis.values[0] - half), float(axis.values[-1] + half)]
        left, right, bottom, top = edges
        horizontal, vertical = (with_units(a.name, a.units) for a in spec.axes)
        return cls(extent=(left, right, bottom, top), labels=(horizontal, vertical))


@attrs.frozen(kw_only=True)
class Maps:
    """A quantity over time.

    Attributes:
        name: What it is, such as "truth" or "mean".
        images: An image for each time, or None where nothing was observed. Images may be coarser
            than the grid.
        label: The quantity with its unit. Maps with the same label share one colour scale.
        sequential: Whether it is a magnitude, which is drawn from zero upwards.
    """

    name: str
    images: Sequence[np.ndarray | None]
    label: str
    sequential: bool = False

    def at(self, indices: Sequence[int]) -> Maps:
        """The maps at some of the times."""
        return attrs.evolve(self, images=[self.images[i] for i in indices])


def ensemble_maps(
    ensemble: Tensor,
    label: str,
    truth: Tensor | None = None,
    observed: Maps | None = None,
    members: int = 2,
) -> list[Maps]:
    """Truth, observation, some members, mean and spread of a scalar field.

    An observation of another quantity comes first, so that what shares a colour scale is together.

    Args:
        ensemble: (M, T, n, m).
        label: The field with its unit.
        truth: (T, n, m), if known.
        observed: What was observed, if it can be drawn.
        members: How many members are shown.
    """
    shown = {"truth": truth} if truth is not None else {}
    shown |= {f"member {i + 1}": member for i, member in enumerate(ensemble[:members])}
    shown["mean"] = ensemble.mean(0)
    rows = [Maps(name=n, images=list(x.numpy()), label=label) for n, x in shown.items()]
    if observed is not None:
        rows.insert(0 if truth is None or observed.label != label else 1, observed)
    spread = list(ensemble.std(0).numpy())
    rows.append(Maps(name="spread", images=spread, label=f"std of {label}", sequential=True))
    return rows
