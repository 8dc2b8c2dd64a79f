"""Clusters: where heavy work is spread to."""

from sda_core.cluster.address import at_address
from sda_core.cluster.base import Cluster, Link
from sda_core.cluster.folder import Folder, Lent, SameFolder
from sda_core.cluster.local import Local

__all__ = ["Cluster", "Folder", "Lent", "Link", "Local", "SameFolder", "at_address"]
