"""The distributions as people get them: wheels, installed where nothing of this repository is.

The fresh environment sees the third-party packages of the present one through a folder of links,
since installing torch again would take minutes. Nothing here needs a network.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "double-pendulum"
DISTRIBUTIONS = {
    "sda_core": ROOT / "sda_core",
    "sda_lorenz": ROOT / "sda_lorenz",
    "sda_mlp": ROOT / "plugins" / "sda-mlp",
    "sda_transformer": ROOT / "plugins" / "sda-transformer",
    "sda_dps": ROOT / "plugins" / "sda-dps",
}


class Environment:
    """A virtual environment with chosen wheels and third-party packages."""

    def __init__(self, path: Path, third_party: Path) -> None:
        self.path = path
        venv.create(path, symlinks=True)
        self.bin = path / "bin"
        self.site = next((path / "lib").glob("python*/site-packages"))
        (self.site / "third_party.pth").write_text(f"{third_party}\n")

    def install(self, *wheels: Path) -> None:
        """Install wheels and nothing they depend on."""
        python = str(self.bin / "python")
        run(sys.executable, "-m", "pip", "--python", python, "install", *PIP, *map(str, wheels))

    def run(self, *command: str, cwd: Path) -> str:
        """Run a command of the environment and give what it prints."""
        return run(str(self.bin / command[0]), *command[1:], cwd=cwd)


PIP = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")


def run(*command: str, cwd: Path | None = None) -> str:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SDA_DEBUG")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["OMP_NUM_THREADS"] = "1"  # small work is slower on several threads
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each distribution and of the example, by the package's name."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = [str(p) for p in (*DISTRIBUTIONS.values(), EXAMPLE)]
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", *PIP, "--no-build-isolation", "--wheel-dir", str(folder), *sources)
    return {file.name.partition("-")[0]: file for file in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to all installed packages but this project's."""
    folder = tmp_path_factory.mktemp("third-party")
    for packages in map(Path, site.getsitepackages()):
        for entry in packages.iterdir():
            ours = entry.name.startswith(("sda_", "__editable__", "_editable_impl"))
            if not ours and entry.suffix != ".pth" and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def core_alone(
    tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path], third_party: Path
) -> Environment:
    """An environment with sda-core and no plugin."""
    environment = Environment(tmp_path_factory.mktemp("core-alone") / "venv", third_party)
    environment.install(wheels["sda_core"])
    return environment


@pytest.fixture(scope="module")
def with_example(
    tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path], third_party: Path
) -> Environment:
    """An environment with sda-core and the tutorial's plugin."""
    environment = Environment(tmp_path_factory.mktemp("with-example") / "venv", third_party)
    environment.install(wheels["sda_core"], wheels["sda_double_pendulum"])
    return environment


@pytest.mark.parametrize("package", DISTRIBUTIONS)
def test_wheel_is_complete(wheels: dict[str, Path], package: str) -> None:
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = wheel.namelist()
        (info,) = {n.partition("/")[0] for n in names if ".dist-info/" in n}
        (licence,) = [n for n in names if n.startswith(info) and n.endswith("/LICENSE")]
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"{package}/py.typed" in names
    plugin = "builtin" if package == "sda_core" else "plugin"
    assert f"{package}/{plugin}.py" in names
    assert "License-Expression: MIT" in metadata
    assert {n.partition("/")[0] for n in names} == {package, info}
    sources = (DISTRIBUTIONS[package] / "src" / package).rglob("*")
    files = {s for s in sources if s.is_file() and "__pycache__" not in s.parts}
    expected = {f.relative_to(DISTRIBUTIONS[package] / "src").as_posix() for f in files}
    assert {n for n in names if not n.startswith(info)} == expected


def test_core_works_alone(core_alone: Environment, tmp_path: Path) -> None:
    listed = json.loads(core_alone.run("sda", "list", "--json", cwd=tmp_path))
    assert {c["distribution"] for c in listed} == {"sda-core"}
    kinds = {"schedule", "sampler", "observation", "noise", "method", "cluster"}
    assert {c["kind"] for c in listed} == kinds
    assert "sda-core" in core_alone.run("sda", "list", cwd=tmp_path)
    health = json.loads(core_alone.run("sda", "doctor", "--json", cwd=tmp_path))
    assert health["ok"]
    assert [f["message"] for f in health["findings"] if f["subject"] == "plugin"] == [
        f"sda-core {listed[0]['version']}"
    ]


def test_nothing_of_this_repository_is_on_the_path(
    with_example: Environment, tmp_path: Path
) -> None:
    code = (
        "import json, sys, sda_core, sda_double_pendulum as d;"
        "print(json.dumps([sys.path, [sda_core.__file__, d.__file__]]))"
    )
    path, files = json.loads(with_example.run("python", "-c", code, cwd=tmp_path))
    assert not [p for p in path if Path(p).is_relative_to(ROOT)]
    assert all(Path(f).is_relative_to(with_example.site) for f in files)


def test_example_is_picked_by_name(with_example: Environment, tmp_path: Path) -> None:
    listed = json.loads(with_example.run("sda", "list", "--json", cwd=tmp_path))
    others = [c for c in listed if c["distribution"] != "sda-core"]
    assert [(c["kind"], c["name"], c["distribution"]) for c in others] == [
        ("system", "double-pendulum", "sda-double-pendulum")
    ]
    table = with_example.run("sda", "list", "system", cwd=tmp_path)
    assert table.split() == [
        *("system", "double-pendulum", "Double", "pendulum", "without", "friction"),
        *("sda-double-pendulum", "0.1.0"),
    ]
    shown = with_example.run("sda", "info", "system", "double-pendulum", cwd=tmp_path)
    assert "gravity [m/s^2]: float, default 9.81; greater than 0" in shown


def test_example_simulates(with_example: Environment, tmp_path: Path) -> None:
    sizes = ("trajectories=10", "length=20", "burn_in=5")
    overrides = [f"--set=data.{size}" for size in sizes]
    command = ("sda", "simulate", "double-pendulum", *overrides, "--set=system.rod=0.5")
    assert "data: runs/double-pendulum/data" in with_example.run(*command, cwd=tmp_path)
    code = (
        "import sys, json, xarray;"
        "x = xarray.open_dataset('runs/double-pendulum/data/train.h5');"
        "print(json.dumps([x.x.shape, x['variable'].values.tolist(),"
        " json.loads(x.attrs['system'])]))"
    )
    shape, names, system = json.loads(with_example.run("python", "-c", code, cwd=tmp_path))
    assert shape == [8, 20, 4]
    assert names == ["angle_1", "angle_2", "rate_1", "rate_2"]
    assert (system["name"], system["rod"]) == ("double-pendulum", 0.5)


def test_example_passes_its_own_tests(with_example: Environment, tmp_path: Path) -> None:
    name = "test_double_pendulum.py"
    (tmp_path / name).write_text((EXAMPLE / "tests" / name).read_text())
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    printed = with_example.run("python", "-m", "pytest", *options, name, cwd=tmp_path)
    assert "passed" in printed
    assert "failed" not in printed
