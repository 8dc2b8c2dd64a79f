"""A directory and its copy at a URL."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sda_core.errors import ClusterError, ConfigError
from sda_core.experiment import load_experiment
from sda_ray.mirror import Mirror, check_url

from .test_sweep import SPACE, TRAIN


def fill(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        path = directory / name.replace("_", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def contents(directory: Path) -> dict[str, str]:
    files = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}
    return {name: path.read_text() for name, path in files.items() if "/." not in f"/{name}"}


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(f"file://{tmp_path}/far") / "trials/00000"


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    directory = tmp_path / "here"
    fill(directory, **{"history-json": "[1]", "checkpoints_step-1": "weights", "-lock": "mine"})
    os.link(directory / "checkpoints" / "step.1", directory / "checkpoints" / "best")
    (directory / "data").symlink_to("..")
    return directory


def objects(mirror: Mirror) -> list[str]:
    return sorted(contents(Path(mirror.path)))


def test_a_copy_is_the_same(mirror: Mirror, trial: Path, tmp_path: Path) -> None:
    assert not mirror.exists()
    assert not mirror.pull(tmp_path / "there")
    assert not (tmp_path / "there").exists()
    mirror.push(trial)
    assert mirror.exists()
    assert mirror.pull(tmp_path / "there")
    expected = {
        "history.json": "[1]",
        "checkpoints/step.1": "weights",
        "checkpoints/best": "weights",
    }
    assert contents(tmp_path / "there") == expected
    assert not (tmp_path / "there" / "data").exists()
    # What is the same is stored once, under a name that says what it is and programs know.
    assert len(objects(mirror)) == 3
    assert any(name.startswith("history.") and name.endswith(".json") for name in objects(mirror))


def test_what_changes_is_sent_and_what_goes_is_removed(
    mirror: Mirror, trial: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    mirror.push(trial)
    mirror.pull(fill(there, **{"trial-json": "not of the copy"}))
    untouched = (there / "checkpoints" / "best").stat().st_ino
    fill(trial, **{"history-json": "[1, 2]", "checkpoints_step-2": "more weights"})
    (trial / "checkpoints" / "step.1").unlink()
    mirror.push(trial)
    mirror.pull(there)
    assert contents(there) == {
        "history.json": "[1, 2]",
        "checkpoints/step.2": "more weights",
        "checkpoints/best": "weights",
        "trial.json": "not of the copy",
    }
    assert (there / "checkpoints" / "best").stat().st_ino == untouched
    assert len(objects(mirror)) == 4
    mirror.push(trial, leave_out=("history.json",))
    mirror.pull(there)
    assert "history.json" not in contents(there)


def test_what_was_sent_counts_as_fetched(mirror: Mirror, trial: Path, tmp_path: Path) -> None:
    """So that the copy, once others have changed it, comes back as it is."""
    there = tmp_path / "there"
    fill(trial, posterior_x="large", note="of the time before")
    mirror.push(trial, leave_out=("posterior",), is_fetched=True)
    best = (trial / "checkpoints" / "best").stat().st_ino
    mirror.pull(there)
    assert not (there / "posterior").exists()
    (there / "checkpoints" / "step.1").unlink()
    mirror.push(fill(there, note="of now"))
    mirror.pull(trial)
    assert contents(trial) == {
        "history.json": "[1]",
        "checkpoints/best": "weights",
        "note": "of now",
        "posterior/x": "large",  # which was never in the copy
    }
    assert (trial / "checkpoints" / "best").stat().st_ino == best


@pytest.mark.parametrize("operation", ["put", "pipe_file", "mv", "rm_file"])
def test_half_an_upload_counts_for_nothing(
    mirror: Mirror, trial: Path, tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads after a kill finds what was there before, or all that is new."""
    mirror.push(trial)
    before = contents(trial)
    fill(trial, **{"history-json": "[1, 2]", "checkpoints_step-2": "x", "model_model-json": "{}"})
    (trial / "checkpoints" / "step.1").unlink()
    original = getattr(type(mirror.file_system), operation)

    def die(self: Any, *args: Any, **kwargs: Any) -> None:
        if operation == "put":  # after the first of several
            original(self, args[0][:1], args[1][:1])
        raise ConnectionResetError("the cable")

    with monkeypatch.context() as patch:
        patch.setattr(type(mirror.file_system), operation, die)
        with pytest.raises(ClusterError, match=r"far/trials/00000 .*given a copy.*the cable"):
            mirror.push(trial)
    mirror.pull(tmp_path / "there")
    assert contents(tmp_path / "there") == (contents(trial) if operation == "rm_file" else before)
    mirror.push(trial)
    mirror.pull(tmp_path / "there")
    assert contents(tmp_path / "there") == contents(trial)


def test_a_file_that_is_being_written_stays_as_it_was(
    mirror: Mirror, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.push(trial)
    put = type(mirror.file_system).put

    def slow(self: Any, sources: list[str], targets: list[str]) -> None:
        with (trial / "history.json").open("a") as file:
            file.write("!")
        put(self, sources, targets)

    fill(trial, **{"history-json": "[1, 2]", "model_model-json": "{}"})
    monkeypatch.setattr(type(mirror.file_system), "put", slow)
    mirror.push(trial)
    mirror.pull(tmp_path / "there")
    copied = contents(tmp_path / "there")
    assert copied.pop("history.json") == "[1]"
    assert copied == {name: text for name, text in contents(trial).items() if "history" not in name}


def test_what_was_stored_otherwise_is_refused(mirror: Mirror, trial: Path, tmp_path: Path) -> None:
    mirror.push(trial)
    (name,) = (name for name in objects(mirror) if name.startswith("history"))
    (Path(mirror.path) / name).write_text("[3]")
    with pytest.raises(ClusterError, match=rf"{name} is not as it was stored"):
        mirror.pull(tmp_path / "there")
    assert not contents(tmp_path / "there")
    (Path(mirror.path) / name).unlink()
    with pytest.raises(ClusterError, match=r"cannot be copied to .*there: FileNotFoundError"):
        mirror.pull(tmp_path / "there")


def test_another_upload_while_it_is_read(
    mirror: Mirror, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.push(trial)
    get = type(mirror.file_system).get

    def late(self: Any, *args: Any) -> None:
        monkeypatch.undo()
        fill(trial, **{"history-json": "[1, 2]"})
        mirror.push(trial)
        get(self, *args)

    monkeypatch.setattr(type(mirror.file_system), "get", late)
    mirror.pull(tmp_path / "there")
    assert contents(tmp_path / "there")["history.json"] == "[1, 2]"


def test_texts(mirror: Mirror) -> None:
    flag = mirror / ".leaving"
    assert flag.text() is None
    flag.remove()
    flag.put_text("go")
    assert flag.exists()
    assert flag.text() == "go"
    flag.remove()
    assert not flag.exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/shared/path", r"'/shared/path' is no place that other machines see: give a URL such"),
        ("memory://path", r"'memory://path' is no place that other machines see"),
        ("s33://bucket", r"Protocol not known: s33, did you mean s3://\?; allowed are fsspec's"),
        ("hf://bucket", r"pip install huggingface_hub, here and on all machines of the cluster"),
    ],
)
def test_urls_that_are_none(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_url(url)
    experiment = load_experiment(
        "lorenz63-quick", [*TRAIN, SPACE, "cluster.name=ray", f"cluster.storage={url}"]
    )
    assert experiment.sweep is not None
    with pytest.raises(ConfigError, match=told):
        experiment.sweep.check(experiment)


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    fill(tmp_path, file="no folder")
    with pytest.raises(
        ClusterError, match=r"file/far \(cluster.storage\) cannot be written to and"
    ):
        Mirror(f"file://{tmp_path}/file/far").check()
    Mirror(f"file://{tmp_path}/far").check()
    assert not list((tmp_path / "far").iterdir())


def test_the_manifest_is_for_people_too(mirror: Mirror, trial: Path) -> None:
    mirror.push(trial)
    manifest = json.loads((mirror / "manifest.json").text() or "")
    assert set(manifest["files"]) == {"history.json", "checkpoints/step.1", "checkpoints/best"}
