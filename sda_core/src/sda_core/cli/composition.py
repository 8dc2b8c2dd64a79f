"""``sda composition``: what composing the windows of a trained model costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from sda_core.cli.output import JsonOption, command, console, echo
from sda_core.cli.stages import Directory, Overrides, Quiet, Source, Threads, prepare

if TYPE_CHECKING:
    from sda_core.denoiser import FoldName
    from sda_core.denoiser.composition_error import CompositionError


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(command(composition))


def composition(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    trajectories: Annotated[
        int, typer.Option(min=2, help="Trajectories of the test split; fewer if there are fewer.")
    ] = 64,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="States of each that are used; three windows' if not given."),
    ] = None,
    levels: Annotated[int, typer.Option(min=1, help="Number of noise levels.")] = 8,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Excess error at which a stride is recommended.")
    ] = 0.01,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what composing the windows of a trained model costs, and recommend a stride.

    On held-out trajectories, at several noise levels: by how much the denoising error of a state
    grows, beside that of the most central state of a window, when windows are composed at each
    stride. Written to composition.json and figures/composition.png.
    """
    loaded, folder = prepare(experiment, directory, overrides)
    from sda_core import stages

    error = stages.composition(
        loaded,
        folder,
        trajectories=trajectories,
        length=length,
        levels=levels,
        tolerance=tolerance,
        progress=not quiet,
    )
    if as_json:
        echo((folder / "composition.json").read_text(), end="")
        return
    _print(error, loaded.model.stride, loaded.model.fold, tolerance)
    echo(f"\nall strides, both folds: {folder / 'composition.json'}")
    echo(f"figure: {folder / 'figures' / 'composition.png'}")


def _print(error: CompositionError, stride: int, fold: FoldName, tolerance: float) -> None:
    from rich.table import Table

    from sda_core.stages.composition import FOLDS

    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    levels = [f"{noise:.2g}" for noise in error.noise.tolist()]
    for column in ("stride", "cost", *levels, "±", "distance"):
        table.add_column(column, justify="right")
    full = [f"{v:.0e}" if v < 0.01 else f"{v:.2g}" for v in error.full.value.tolist()]
    table.add_row("error", "", *full, end_section=True, style="dim")
    recommended = {f: error.recommended_stride(tolerance, f) for f in FOLDS}
    for s in _rows(error.window, stride, *recommended.values()):
        value, std_error = error.excess(s, fold)
        numbers = (*value.tolist(), float(std_error.max()))
        apart = float(error.difference(s, fold).value.max())
        cells = [f"{100 * v:.1f}" for v in (*numbers, apart)]
        table.add_row(str(s), f"{1 / s:.2f}", *cells)
    out = console()
    out.print(
        f"Window {error.window}, fold {fold}: excess error in % at noise levels sigma / alpha.\n"
        f"cost: evaluations of the network per state; ±: largest standard error, over "
        f"{len(error.products)} trajectories;\ndistance: largest of |D_s - D_1|^2, in % of the "
        "error at full width, which is in the first row.\n",
        soft_wrap=True,
    )
    out.print(table)
    out.print()
    for name, best in recommended.items():
        if best is None:
            out.print(f"fold {name}: no stride is within {100 * tolerance:g} %")
            continue
        out.print(
            f"fold {name}: stride {best} is the largest within {100 * tolerance:g} % at every "
            f"noise level ({100 * error.worst_excess(best, name):.2g} % at most, "
            f"{1 / best:.3f} evaluations of the network per state)",
            soft_wrap=True,
        )
    worst = error.worst_excess(stride, fold)
    out.print(f"model.stride = {stride} and model.fold = {fold!r}: {100 * worst:.2g} % at most")
    if recommended["center"] == 1 < error.window:
        out.print(
            "Even the neighbours of the most central state are worse: a wider window would "
            "probably be more accurate.",
            soft_wrap=True,
        )


def _rows(window: int, *also: int | None) -> Iterable[int]:
    """Strides to show: 1, 2, 3, 4, 6, 8, 12, ..., half of the window, and all of it."""
    doubled = {f * 2**n for f in (2, 3) for n in range(window.bit_length())}
    wanted = {1, window // 2, window, *doubled, *(s for s in also if s is not None)}
    return sorted(s for s in wanted if 1 <= s <= window)
