"""Whether a cluster reaches what whoever asks for trials has, from outside of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sda_core.config import structure
from sda_core.errors import ClusterError, SDAError
from sda_core.experiment import Experiment
from sda_ray.leader import on_head
from sda_ray.mirror import Mirror


def check_reach(
    place: Mirror, table: Mapping[str, Any], files: Sequence[Path], versions: Mapping[str, str]
) -> None:
    """Refuse a cluster whose head has another disk, or lacks what trials need.

    Args:
        place: Where trials are kept.
        table: The experiment.
        files: What is not copied there: files and folders that all machines must have.
        versions: Versions of the distributions here.

    Raises:
        ClusterError: Says what is missing.
    """
    token = place / f".{uuid.uuid4().hex}"
    token.put_text("")
    try:
        is_there = on_head(_look, token.url, table, [str(path) for path in files], versions)
    finally:
        token.remove()
    if not is_there:
        raise ClusterError(
            f"{place.url} is not the same place, or cannot be written to, on the head of the "
            "cluster, and trials are kept there: set cluster.storage to a URL that all machines "
            "reach, or send the command to the head by `ray job submit`, with --address auto"
        )


def _look(url: str, table: dict[str, Any], files: list[str], versions: dict[str, str]) -> bool:
    """Whether the token is found, and can be removed; on the head.

    Raises:
        ClusterError: Something else is missing.
    """
    for name, there in versions.items():
        with suppress(PackageNotFoundError):  # it may not be needed
            if (here := version(name)) != there:
                raise ClusterError(
                    f"{name} is {there} on this machine and {here} on the head of the cluster: "
                    "install one version on all machines"
                )
    try:
        structure(Experiment, table)
    except SDAError as error:
        raise ClusterError(
            "the head of the cluster cannot read the experiment, and needs the same packages as "
            f"this machine: {error}"
        ) from error
    if not _take(url):
        return False
    for path in files:
        if not Path(path).exists():
            raise ClusterError(
                f"{path} is not there for the head of the cluster, and trials need it: copy it to "
                "all its machines, under the same path"
            )
    return True


def _take(url: str) -> bool:
    """Remove the token; whether it was there.

    Raises:
        ClusterError: The storage cannot be reached.
    """
    try:
        token = Mirror(url)
        token.file_system.rm_file(token.path)
    except FileNotFoundError:
        return False
    except Exception as error:  # each file system has errors of its own
        if "://" not in url:
            return False
        raise ClusterError(
            "the head of the cluster cannot reach cluster.storage, for which it needs the packages "
            f"and credentials of this machine: {type(error).__name__}: {error}"
        ) from error
    return True
