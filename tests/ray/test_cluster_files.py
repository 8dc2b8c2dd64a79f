"""The files of docs/examples/cluster fit each other, and this project."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from typer.testing import CliRunner

from sda_core.cli import make_app
from sda_core.plugins import default_manager

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "examples" / "cluster"
KUBERAY, CLOUD = FILES / "kuberay.yaml", FILES / "ray-cluster.yaml"
#: A command of `sda` in a file, once lines that go on are joined.
COMMAND = re.compile(r"sda (sweep [^\"\n]*)")


def kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = yaml.safe_load_all(KUBERAY.read_text())
    return claim, job


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_versions_agree() -> None:
    release = pinned()["ray"]
    base = re.search(r"^FROM rayproject/ray:(\S+)-py(\d)(\d+)-gpu$", _text("Dockerfile"), re.M)
    assert base is not None
    assert base[1] == release
    assert f"{base[2]}.{base[3]}" == _python()
    assert kuberay()[1]["spec"]["rayClusterSpec"]["rayVersion"] == release
    assert f'"ray[default]=={release}"' in CLOUD.read_text()
    image = f"registry.example.org/me/sda:{version('sda-ray')}"
    assert f"--tag {image} -" in _text("Dockerfile")
    assert {pod["containers"][0]["image"] for pod in pods(kuberay()[1])} == {image}
    assert yaml.safe_load(CLOUD.read_text())["docker"]["image"] == image


def _text(name: str) -> str:
    return (FILES / name).read_text()


def _python() -> str:
    """The version of Python that the type checker assumes, the lowest supported one."""
    found = re.search(r'^python_version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found is not None
    return found[1]


def test_the_image_installs_what_is_there() -> None:
    folders = re.findall(r"\./[\w/-]+", _text("Dockerfile"))
    assert "./plugins/sda-ray" in folders
    assert [folder for folder in folders if not (ROOT / folder / "pyproject.toml").exists()] == []


def test_all_pods_of_kuberay_share_the_results() -> None:
    claim, job = kuberay()
    assert (claim["kind"], job["kind"], job["apiVersion"]) == (
        "PersistentVolumeClaim",
        "RayJob",
        "ray.io/v1",
    )
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    directory = Path(shlex.split(job["spec"]["entrypoint"])[4])
    for pod in pods(job):
        (container,) = pod["containers"]
        mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
        assert mounts["results"] in directory.parents
        claims = {v["name"]: v.get("persistentVolumeClaim") for v in pod["volumes"]}
        assert claims["results"] == {"claimName": claim["metadata"]["name"]}
        assert mounts.keys() == claims.keys()
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_cloud_file_has_the_form_of_the_launcher() -> None:
    table = yaml.safe_load(CLOUD.read_text())
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(table, json.loads(schema.read_text()))
    types = table["available_node_types"]
    assert table["head_node_type"] in types
    assert sum(kind.get("max_workers", 0) for kind in types.values()) <= table["max_workers"]


@pytest.mark.parametrize("name", ["kuberay.yaml", "ray-cluster.yaml", "slurm.sbatch"])
def test_commands_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tried with the experiment of the page on sweeps, which they name."""
    monkeypatch.chdir(tmp_path)
    found = re.search(
        r"`tune\.toml`:\n\n```toml\n(.*?)^```$",
        (ROOT / "docs" / "sweeps.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None
    Path("tune.toml").write_text(found[1])
    text = _text(name).replace("s3://", "file:///")  # s3fs need not be installed here
    commands = COMMAND.findall(re.sub(r"\\\n#? *", "", text))
    assert commands
    for command in commands:
        words = shlex.split(command)
        arguments = ["tune.toml" if word.endswith("/tune.toml") else word for word in words]
        done = CliRunner().invoke(make_app(default_manager()), [*arguments, "--dry-run"])
        assert done.exit_code == 0, f"{command}: {done.output} {done.exception}"
        assert "20 trials" in done.output
