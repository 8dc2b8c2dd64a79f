"""Directories at URLs, and the lock of a machine's cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from sda_core.errors import ClusterError, ConfigError
from sda_core.experiment import load_experiment
from sda_ray.storage import check_url, check_writable, download, exists, newest, remove, upload

from .test_sweep import SPACE, TRAIN


def contents(directory: Path) -> dict[str, str]:
    """All files, but our own."""
    files = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}
    return {name: path.read_text() for name, path in files.items() if "/." not in f"/{name}"}


def write(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/far/trials/00000"


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    directory = tmp_path / "here"
    for name, text in (("history.json", "[1]"), ("checkpoints/step-1", "1"), (".lock", "mine")):
        write(directory, name, text)
    (directory / "data").symlink_to("..")
    return directory


WHOLE = {"history.json": "[1]", "checkpoints/step-1": "1"}


def test_a_copy_is_the_same(url: str, trial: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert not exists(url)
    assert newest(url) is None
    assert not download(url, there)
    assert not there.exists()
    name = upload(trial, url)
    assert newest(url) == name
    assert exists(url)
    assert download(url, there)
    assert contents(there) == WHOLE
    assert upload(trial, url) == name  # there is nothing new
    write(trial, "extra", "x")
    upload(trial, url, exclude=("checkpoints",))
    assert download(url, there)
    assert contents(there) == WHOLE | {"extra": "x"}
    remove(url)
    assert newest(url) is None


def test_the_newest_copy_takes_the_place_of_folders(url: str, trial: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    write(there, "mine", "kept")
    upload(trial, url)
    assert download(url, there)
    for step in range(2, 6):
        (trial / "checkpoints" / f"step-{step - 1}").unlink()
        write(trial, f"checkpoints/step-{step}", str(step))
        write(trial, "history.json", f"[{step}]")
        upload(trial, url)
    assert download(url, there)
    expected = {"history.json": "[5]", "checkpoints/step-5": "5", "mine": "kept"}
    assert contents(there) == expected
    write(there, "history.json", "changed here")
    assert download(url, there)  # it has this copy, so nothing is done
    assert contents(there) == expected | {"history.json": "changed here"}
    kept = [path.name for path in (tmp_path / "far/trials/00000").iterdir()]
    assert len(kept) == 2


@pytest.mark.parametrize("operation", ["put_file", "pipe_file"])
def test_half_an_upload_counts_for_nothing(
    url: str, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    first = upload(trial, url)
    write(trial, "history.json", "[1, 2]")
    write(trial, "model/model.json", "{}")

    def fail(self: Any, *args: Any, **options: Any) -> None:
        raise ConnectionResetError("the cable")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, operation, fail)
        with pytest.raises(ClusterError, match=r"cannot be given a copy of .*here.*the cable"):
            upload(trial, url)
    assert newest(url) == first
    assert download(url, tmp_path / "there")
    assert contents(tmp_path / "there") == WHOLE
    upload(trial, url)
    assert download(url, tmp_path / "there")
    assert contents(tmp_path / "there")["history.json"] == "[1, 2]"


def test_half_a_download_changes_nothing(
    url: str, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    upload(trial, url)
    download(url, there)
    write(trial, "history.json", "[1, 2]")
    write(trial, "checkpoints/step-2", "2")
    upload(trial, url)
    get, calls = LocalFileSystem.get_file, []

    def fail(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise ConnectionResetError("the cable")
        return get(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "get_file", fail)
        with pytest.raises(ClusterError, match="cannot be copied to"):
            download(url, there)
    assert contents(there) == WHOLE
    assert download(url, there)
    assert contents(there) == contents(trial)


def test_a_file_that_vanishes_meanwhile_is_left_out(
    url: str, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalFileSystem.put_file

    def vanish(self: Any, source: str, target: str, **options: Any) -> Any:
        if source.endswith("step-1"):
            os.unlink(source)
        return put(self, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", vanish)
    upload(trial, url)
    assert download(url, tmp_path / "there")
    assert contents(tmp_path / "there") == {"history.json": "[1]"}


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
    write(tmp_path, "file", "no folder")
    told = r"file/far \(cluster.storage\) cannot be written to and"
    with pytest.raises(ClusterError, match=told):
        check_writable(f"file://{tmp_path}/file/far")
    check_writable(f"file://{tmp_path}/far")
    assert not list((tmp_path / "far").iterdir())
