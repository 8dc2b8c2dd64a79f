"""What comes after a trial's training: its model's scores, and the figures of the trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sda_core import stages
from sda_core.errors import SDAError
from sda_core.experiment import Run
from sda_core.model import TrainedModel
from sda_core.plugins import default_manager, hookimpl
from sda_ray.scores import denoise, denoising_scores


def appraise(
    run: Run, model: TrainedModel, check: Callable[[], None], *, evaluate: bool
) -> dict[str, Any]:
    """Score a trained model, and draw the figures of its trial.

    Args:
        run: The run directory of the trial.
        model: Its model.
        check: Called often while states are inferred; may raise.
        evaluate: Whether states are inferred from observations, too.

    Returns:
        ``metrics``: those of the denoiser, and, if asked for, as ``"posterior/crps"`` those of the
        posterior; and ``cause`` where there are none of these.
    """
    found = denoise(run, model)
    if found:
        with drawing():
            from sda_ray.denoising import denoising_pictures  # matplotlib takes a while to import

            for picture in denoising_pictures(found, model.spec):
                picture.save(run.directory / "figures")
    result: dict[str, Any] = {"metrics": denoising_scores(found)}
    if not evaluate:
        return result
    try:
        with default_manager().with_plugins([_Checker(check)]):
            stages.assimilate(run.experiment, run.directory, progress=False)
            scores = stages.evaluate(run.experiment, run.directory, progress=False)["posterior"]
    except SDAError as error:  # the training is not lost with it
        return result | {"cause": f"trained, and not evaluated: {error}"}
    result["metrics"] |= {f"posterior/{name}": float(value) for name, value in scores.items()}
    return result


@contextmanager
def drawing() -> Iterator[None]:
    """Warn where figures fail: no trial is lost for a picture."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of plugins, too
        warnings.warn(f"figures cannot be drawn: {type(error).__name__}: {error}", stacklevel=3)


class _Checker:
    """A plugin that lets a trial be left while it infers."""

    sda_interface = 1

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    @hookimpl
    def sda_sampling_step(self) -> None:
        """Leave."""
        self._check()
