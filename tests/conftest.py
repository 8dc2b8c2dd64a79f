"""Fixtures that tests of several folders share."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from sda_core.plugins import PluginManager

# The tensors of tests are small: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about the machine than about the code.
settings.register_profile("sda", deadline=None)
settings.load_profile("sda")


class Site:
    """A folder of installed distributions, as pip leaves them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def add(
        self,
        name: str,
        plugin: str,
        *,
        modules: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        version: str = "1.0",
    ) -> None:
        """Install a distribution whose plugin module is NAME_plugin (with ``_`` for ``-``)."""
        module = f"{name.replace('-', '_')}_plugin"
        sources = {module: plugin, **(modules or {})}
        self.modules += sources
        for other, source in sources.items():
            (self.path / f"{other}.py").write_text(source)
        for file, text in (files or {}).items():
            (self.path / file).write_text(text)
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[sda]\n{name} = {module}\n")

    def manager(self) -> PluginManager:
        """A manager of these distributions alone."""
        distributions = importlib.metadata.distributions(path=[str(self.path)])
        return PluginManager(e for d in distributions for e in d.entry_points if e.group == "sda")

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run code in a process that has these distributions besides what is installed."""
        environment = {k: v for k, v in os.environ.items() if k != "SDA_DEBUG"}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**environment, "PYTHONPATH": str(self.path)},
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
        )

    def sda(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``sda`` in such a process."""
        return self.python("from sda_core.cli import main; main()", *arguments)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty folder to install distributions into, on the path of this process."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made = Site(folder)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
