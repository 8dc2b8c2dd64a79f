"""The cluster at an address."""

from __future__ import annotations

from typing import Any

import attrs

from sda_core.cluster.base import Cluster
from sda_core.config import structure
from sda_core.errors import ConfigError, UnknownComponentError
from sda_core.plugins import PluginManager, default_manager


def at_address(
    address: str, cluster: Cluster | None = None, *, manager: PluginManager | None = None
) -> Cluster:
    """The Ray cluster at an address.

    Args:
        address: Its address, as of the component ``ray``.
        cluster: The cluster of an experiment, whose other settings are kept if it is one of Ray.
        manager: Where "ray" is looked up; None for what is installed.

    Raises:
        ConfigError: The package sda-ray is not installed.
    """
    manager = manager or default_manager()
    try:
        ray: Any = manager.get("cluster", "ray")
    except UnknownComponentError as error:
        raise ConfigError(
            f"--address {address} is that of a Ray cluster, for which the package sda-ray is "
            "needed: pip install sda-ray, or leave --address out, for processes of this machine"
        ) from error
    if isinstance(cluster, ray):
        settings: Any = cluster
        return attrs.evolve(settings, address=address)
    return structure(Cluster, {"name": "ray", "address": address}, manager=manager)
