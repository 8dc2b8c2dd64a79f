"""Whose study a directory holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sda_core.config import differences, load_toml, unstructure
from sda_core.errors import SweepError
from sda_core.experiment import Experiment
from sda_ray.tune.search_space import leaves

#: Keys of the sweep that may be others when a study is resumed: they change no trial.
_MAY_CHANGE = (
    "trials",
    "concurrency",
    "cpus_per_trial",
    "gpus_per_trial",
    "workers_per_trial",
    "time_budget",
    "retries",
    "predictions",
)


def check_directory(experiment: Experiment, directory: Path, resume: bool) -> None:
    """Refuse another study's directory.

    Raises:
        SweepError: There is a study that was not asked for, none where one was, or another.
    """
    path = directory / "config.toml"
    if not path.is_file():
        if resume:
            raise SweepError(
                f"there is no study in {directory} to continue: leave out --resume to start one"
            )
        return
    if "sweep" not in load_toml(path):
        raise SweepError(f"there is a run in {directory}, and no study: give another directory")
    if not resume:
        raise SweepError(
            f"{directory} already holds a study; pass --resume to continue it, --new to start "
            "another one beside it, or --delete to start anew in its place"
        )
    changed = differences(_fixed(load_toml(path)), _fixed(unstructure(experiment)))
    if changed:
        raise SweepError(
            f"the study in {directory} is another one. It differs in {', '.join(changed)}. Its "
            "trials could not be compared with those that would follow: continue it with its own "
            "configuration, pass --new to start another study beside it, or --delete to start anew "
            "in its place"
        )


def _fixed(table: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change in a study."""
    kept = {k: v for k, v in table.items() if k not in ("title", "cluster", "trackers")}
    sweep = {k: v for k, v in table.get("sweep", {}).items() if k not in _MAY_CHANGE}
    return kept | {"sweep": sweep | {"space": dict(leaves(sweep.get("space", {})))}}
