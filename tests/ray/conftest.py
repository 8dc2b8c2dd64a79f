"""A cluster that the fast tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray as module

from sda_ray.cluster import Ray

#: Where modules with the work of tests are, for the processes of the cluster.
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def connect() -> Iterator[Callable[[], Ray]]:
    """Connects to a cluster of two CPUs of this machine; again only where a test has ended it."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def connected() -> Ray:
            cluster = Ray(cpus=2)
            if not module.is_initialized():
                patch.setenv("PYTHONPATH", str(ROOT))  # workers import the work of tests
                stack.enter_context(cluster.connected())
            return cluster

        yield connected
        module.shutdown()


@pytest.fixture
def ray(connect: Callable[[], Ray]) -> Ray:
    """The cluster."""
    return connect()


@pytest.fixture
def cluster(ray: Ray) -> None:
    """The same, for tests that only need a connection."""


@pytest.fixture
def own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection, for tests that make one of their own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module.shutdown()
