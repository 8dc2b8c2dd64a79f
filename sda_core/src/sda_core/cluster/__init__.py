"""Clusters: where heavy work is spread to."""

from sda_core.cluster.address import at_address
from sda_core.cluster.base import Cluster, WorkerChannel
from sda_core.cluster.directory import SharedDirectory, SyncedDirectory, WorkerDirectory
from sda_core.cluster.local import Local

__all__ = [
    "Cluster",
    "Local",
    "SharedDirectory",
    "SyncedDirectory",
    "WorkerChannel",
    "WorkerDirectory",
    "at_address",
]
