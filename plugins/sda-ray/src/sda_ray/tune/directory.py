"""Whose study a directory holds, here and in a storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sda_core.config import differences, load_toml, unstructure
from sda_core.errors import SweepError
from sda_core.experiment import Experiment
from sda_ray.storage import check_writable, exists
from sda_ray.tune.context import TrialContext
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
    table = load_toml(path)
    if "sweep" not in table:
        raise SweepError(f"there is a run in {directory}, and no study: give another directory")
    if not resume:
        raise SweepError(
            f"{directory} already holds a study; pass --resume to continue it, --new to start "
            "another one beside it, or --delete to start another in its place"
        )
    if changed := differences(_fixed(table), _fixed(unstructure(experiment))):
        raise SweepError(
            f"the study in {directory} is another one. It differs in {', '.join(changed)}. Its "
            "trials could not be compared with those that would follow: continue it with its own "
            "configuration, pass --new to start another study beside it, or --delete to start "
            "another in its place"
        )


def _fixed(table: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change in a study."""
    kept = {k: v for k, v in table.items() if k not in ("title", "cluster", "trackers")}
    sweep = {k: v for k, v in table.get("sweep", {}).items() if k not in _MAY_CHANGE}
    return kept | {"sweep": sweep | {"space": dict(leaves(sweep.get("space", {})))}}


def check_storage(context: TrialContext, resume: bool) -> None:
    """Refuse a storage that cannot be written to, or has another study.

    Raises:
        ClusterError: It cannot.
        SweepError: It has.
    """
    if context.storage is None:
        return
    check_writable(context.storage.rpartition("/")[0])
    if not resume and exists(context.storage):
        raise SweepError(
            f"there is something in {context.storage}, as of a study in another directory of this "
            "name: give another name by --dir, or another cluster.storage, or remove it"
        )
