"""Checkpoints: exact, verified, and whole whenever their writer is killed."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sda_core.config import unstructure
from sda_core.data import TrajectoryStore, WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import CheckpointError, CheckpointWarning, ConfigError
from sda_core.io.files import remove_leftovers, replace_file
from sda_core.schedule import VP
from sda_core.training import TrainConfig, Trainer
from sda_core.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    check_settings,
    load_checkpoint,
    save_checkpoint,
)
from sda_core.training.checkpoints import CheckpointFolder
from sda_core.training.state import history_tensors, prefixed

from .data_systems import Swing, make

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]
STATE = {"epoch": 1, "step": 20, "batch": 0, "loss": 0.1}
SETTINGS = {"seed": 0, "train": {"epochs": 8, "guards": {"spike": 5.0}}}


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def _save(path: Path, **changes) -> Path:
    save_checkpoint(path, {"w": torch.arange(6.0)}, STATE | changes, SETTINGS)
    return path


# One file: what is read is what was written.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_come_back_exactly(dtype, tmp_path) -> None:
    patterns = torch.arange(256, dtype=torch.uint8)  # all bit patterns, NaNs among them
    if dtype == torch.bool:
        patterns %= 2
    values = patterns.repeat_interleave(4).repeat(4).view(dtype).reshape(8, -1)
    tensors = {
        "plain": values,
        "scalar": values[3, 1],
        "empty": values[:0],
        "transposed": values.T,
        "strided": values[::2, 1::3],
        "expanded": values[0, 0].expand(3, 2),
        "shared": values,
    }
    save_checkpoint(tmp_path / "c", tensors, STATE, SETTINGS)
    read = load_checkpoint(tmp_path / "c").tensors
    assert read.keys() == tensors.keys()
    for name, x in tensors.items():
        assert read[name].dtype == dtype
        assert read[name].shape == x.shape
        assert torch.equal(_bytes(read[name]), _bytes(x)), name
    read["shared"].view(torch.uint8).zero_()  # what was shared is shared no more
    assert torch.equal(_bytes(read["plain"]), _bytes(values))


def test_tensors_are_as_they_were_when_saved(tmp_path) -> None:
    w = torch.ones(3, requires_grad=True)
    save_checkpoint(tmp_path / "c", {"w": w}, STATE, SETTINGS)
    with torch.no_grad():
        w.zero_()
    read = load_checkpoint(tmp_path / "c").tensors["w"]
    assert read.tolist() == [1, 1, 1]
    assert not read.requires_grad


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)


@settings(max_examples=25, deadline=None)
@given(state=st.dictionaries(st.text(), json_values))
def test_state_comes_back_exactly(state, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "state"
    save_checkpoint(path, {}, state, {"s": state}, number=7)
    read = load_checkpoint(path)
    assert repr(read.state) == repr(state)  # in which -0.0, NaN and all digits count
    assert repr(read.settings) == repr({"s": state})
    assert read.number == 7
    assert read.path == path


def test_a_state_cannot_be_taken_for_the_header(tmp_path) -> None:
    state = STATE | {'"checksum":"': '"checksum":"' + "0" * 64}
    save_checkpoint(tmp_path / "c", {'"checksum":"': torch.ones(2)}, state, SETTINGS)
    assert load_checkpoint(tmp_path / "c").state == state


def test_it_is_a_safetensors_file(tmp_path) -> None:
    with safe_open(_save(tmp_path / "c"), framework="pt") as file:
        assert file.metadata()["schema"] == "3"
        assert json.loads(file.metadata()["settings"]) == SETTINGS
        assert file.get_tensor("w").tolist() == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_memory_of_reading(tmp_path) -> None:
    x = torch.zeros(4, 1_000_000)
    save_checkpoint(tmp_path / "c", {str(i): row for i, row in enumerate(x)}, STATE, SETTINGS)
    tracemalloc.start()
    try:
        load_checkpoint(tmp_path / "c")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert x.nbytes < peak < 2.1 * x.nbytes


# Damage.


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return _save(tmp_path_factory.mktemp("whole") / "c").read_bytes()


class _InMemory(type(Path())):
    """A path to bytes that are on no disk, since thousands of files take long."""

    content = b""

    def read_bytes(self) -> bytes:
        return self.content


def _is_refused(content: bytes) -> bool:
    path = _InMemory("c")
    path.content = content
    try:
        load_checkpoint(path)
    except DamagedCheckpointError:
        return True
    return False


def test_every_bit_counts(whole) -> None:
    def flipped(i: int, bit: int) -> bytes:
        return whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]

    assert not _is_refused(whole)
    assert len(whole) > 300
    places = itertools.product(range(len(whole)), range(8))
    assert [place for place in places if not _is_refused(flipped(*place))] == []


@settings(deadline=None)
@given(data=st.data())
def test_every_change_is_seen(data, whole) -> None:
    start = data.draw(st.integers(0, len(whole)), "start")
    length = data.draw(st.integers(0, 20), "length")
    new = data.draw(st.binary(max_size=20), "new")
    changed = whole[:start] + new + whole[start + length :]
    if changed != whole:
        assert _is_refused(changed)


def test_padding_counts(whole) -> None:
    """A blank is a blank in JSON, whichever it is; but it is not what was written."""
    end = 8 + int.from_bytes(whole[:8], "little")
    assert whole[end - 1 : end] == b" "
    assert _is_refused(whole[: end - 1] + b"\t" + whole[end:])


def test_every_truncation_is_seen(whole) -> None:
    assert all(_is_refused(whole[:n]) for n in range(len(whole)))
    assert _is_refused(whole + b"\0")


def test_what_is_said_of_damage(whole, tmp_path) -> None:
    path = tmp_path / "c"
    path.write_bytes(whole[:-1])
    with pytest.raises(
        DamagedCheckpointError,
        match=r"checkpoint .*c is damaged \(its content does not match its checksum\): delete it",
    ):
        load_checkpoint(path)
    path.write_bytes(whole.replace(b'"checksum"', b'"checksun"'))
    with pytest.raises(DamagedCheckpointError, match=r"is damaged \(it has no checksum\)"):
        load_checkpoint(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(DamagedCheckpointError, match=r"is damaged \(SafetensorError: "):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*: train first"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(DamagedCheckpointError, match=r"is damaged \(IsADirectoryError"):
        load_checkpoint(tmp_path)


def test_what_is_said_when_it_cannot_be_written(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    folder.write({"w": torch.ones(3)}, {"step": 1}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"step-00000002.* cannot be written \(.*File too"
        ):
            folder.write({"w": torch.ones(10_000)}, {"step": 2}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    assert folder.newest().state == {"step": 1}


# Schemas.


def _write_2(path: Path, tensors=None, counters=None) -> Path:
    """A checkpoint as sda-core wrote it with schema 2."""
    header = {
        "schema": "2",
        "counters": json.dumps(counters or {"epoch": 3, "step": 12}),
        "settings": json.dumps({"seed": 0, "train": {"epochs": 6, "batch_size": 8}}),
    }
    save_file(tensors or {"raw.w": torch.arange(3.0)}, path, header)
    return path


def test_schema_2(tmp_path) -> None:
    read = load_checkpoint(_write_2(tmp_path / "last.safetensors"))
    assert read.tensors["raw.w"].tolist() == [0, 1, 2]
    assert (read.state["epoch"], read.state["step"], read.state["batch"]) == (3, 12, 0)
    assert math.isinf(read.state["best_loss"])
    assert prefixed("history", history_tensors(())).keys() <= read.tensors.keys()
    asked = {"seed": 0, "train": unstructure(TrainConfig(epochs=6, batch_size=8))}
    check_settings(read, asked)
    for change in ({"optimizer": "sgd"}, {"epochs": 7}, {"seed": 1}, {"guards": {"spike": 2.0}}):
        with pytest.raises(CheckpointError, match="another configuration"):
            check_settings(read, asked | {"train": asked["train"] | change})


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 6)

    def forward(self, x, t):
        return self.layer(torch.cat((x.flatten(1), t[:, None]), 1)).reshape(x.shape)


def test_a_training_goes_on_from_schema_2(tmp_path) -> None:
    data = make(Swing(), tmp_path / "data", trajectories=20)
    windows = [WindowDataset(TrajectoryStore(data / f"{s}.h5"), 3) for s in ("train", "valid")]

    def trainer() -> Trainer:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            denoiser = WindowDenoiser(_Network(), VP(), 3, "eps")
        return Trainer(denoiser, *windows, TrainConfig(epochs=4, batch_size=8, ema=0.9), 0)

    straight, resumed = trainer(), trainer()
    for metrics in straight.epochs():
        tensors, state = straight.state_dict()
        if metrics.epoch == 2:
            counters = {"epoch": state["epoch"], "step": state["step"]}
            old = {k: v for k, v in tensors.items() if k.startswith(("raw.", "ema.", "optimizer."))}
            path = _write_2(tmp_path / "last.safetensors", old, counters)
            read = load_checkpoint(path)
            assert read.tensors.keys() == tensors.keys()
            assert read.state.keys() == state.keys()
    resumed.load_state_dict(read.tensors, read.state)
    assert [metrics.epoch for metrics in resumed.epochs()] == [3, 4]
    for name, x in resumed.state_dict()[0].items():
        if name.startswith(("raw.", "ema.", "optimizer.")):
            assert torch.equal(x, tensors[name]), name


def test_a_damaged_file_of_schema_2(tmp_path) -> None:
    path = tmp_path / "c"
    content = _write_2(path).read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedCheckpointError, match="SafetensorError"):
        load_checkpoint(path)
    path.write_bytes(content.replace(b"counters", b"countess"))
    with pytest.raises(DamagedCheckpointError, match=r"KeyError: 'counters'"):
        load_checkpoint(path)


@pytest.mark.parametrize("schema", ["1", "99"])
def test_unknown_schemas(schema, tmp_path) -> None:
    path = tmp_path / "step-00000001.safetensors"
    save_file({"x": torch.ones(1)}, path, {"schema": schema})
    message = (
        rf"checkpoint .*{path.name} has schema {schema}, and this version of sda-core reads 3 and "
        "migrates 2: use the version that wrote it"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=message):  # not passed over as damaged
        CheckpointFolder(tmp_path, 2).newest()


# Settings.


def _with_settings(settings) -> Checkpoint:
    return Checkpoint(Path("c"), {}, {"step": 1}, settings)


def test_settings() -> None:
    there = _with_settings({"a": {"b": 1, "c": [1, 2]}, "train": {"epochs": 4, "ema": 0.9}})
    check_settings(there, {"a": {"b": 1, "c": (1, 2)}, "train": {"epochs": 4, "ema": 0.9}})
    asked = {"a": {"b": 2, "c": [1, 2]}, "train": {"epochs": 8}}
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint c belongs to another configuration\. It differs in a\.b \(1 there, 2 "
        r"asked for\), train\.ema \(0\.9 there, none asked for\), train\.epochs \(4 there, 8 asked "
        r"for\)\. .* --may-change a\.b --may-change train\.ema --may-change train\.epochs$",
    ):
        check_settings(there, asked)
    with pytest.raises(CheckpointError, match=r"differs in a\.b \(1 there, 2 asked for\)\. "):
        check_settings(there, asked, ["train"])
    with pytest.raises(CheckpointError, match=r"differs in train\.epochs \(4 there, 8 asked for\)"):
        check_settings(there, asked, ["a.b", "train.ema"])
    check_settings(there, asked, ["train", "a.b"])
    check_settings(there, asked, ["train.epochs", "train.ema", "a"])


def test_options_newer_than_the_checkpoint() -> None:
    there = _with_settings({"train": {"epochs": 4}})
    check_settings(there, {"train": {"epochs": 4, "precision": "float32"}})
    with pytest.raises(CheckpointError, match=r"precision \(float32 there, bfloat16 asked for\)"):
        check_settings(there, {"train": {"epochs": 4, "precision": "bfloat16"}})


def test_options_that_do_not_count() -> None:
    there = _with_settings({"train": {"epochs": 4, "keep": 9}})
    check_settings(there, {"train": {"epochs": 4}})
    gone = _with_settings({"train": {"epochs": 4, "an_option_of_old": 9}})
    with pytest.raises(CheckpointError, match=r"an_option_of_old \(9 there, none asked for\)"):
        check_settings(gone, {"train": {"epochs": 4}})


def test_unknown_keys_to_change() -> None:
    there = _with_settings({"seed": 1, "train": {"epochs": 4}})
    check_settings(there, there.settings, ["train.epochs", "train", "train.keep", "seed"])
    for key, hint in {
        "train.epoch": r"did you mean 'train\.epochs'\? ",
        "tran": "did you mean 'train'",
        "epochs.train": "the tables are seed, train",
    }.items():
        with pytest.raises(ConfigError, match=f"--may-change {key}: there is no such key.*{hint}"):
            check_settings(there, there.settings, [key])


# The folder.


def _names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.stem.removeprefix("step-000000") for path in folder.directory.iterdir())


def _write(folder: CheckpointFolder, *steps: int, best: bool = False) -> Path:
    for step in steps:
        path = folder.write({"w": torch.tensor(step)}, {"step": step}, SETTINGS, best)
    return path


def _newest(folder: CheckpointFolder) -> int:
    """The step of the newest, of which no warning is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = folder.newest()
    assert found.tensors["w"] == found.state["step"]
    assert found.settings == SETTINGS
    return found.state["step"]


def _flip(path: Path, place: float) -> None:
    """Change a byte, without changing which file it is."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_an_empty_folder(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path / "none", 2)
    assert folder.newest() is None
    assert folder.best() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_and_the_best_are_kept(keep, tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, keep)
    path = _write(folder, 10)
    assert path == tmp_path / "step-00000010.safetensors"
    assert folder.best() is None
    _write(folder, 20, best=True)
    _write(folder, 30, 40, 50)
    assert _names(folder) == [*["30", "40", "50"][-keep:], "best"]
    assert _newest(folder) == 50
    assert folder.best().state["step"] == 20


def test_steps_are_ordered_as_numbers(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    _write(folder, 99_999_999, 100_000_000, 100_000_001)
    assert _names(folder) == ["step-100000000", "step-100000001"]
    assert _newest(folder) == 100_000_001


def test_the_best_takes_no_space_of_its_own(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    path = _write(folder, 10, best=True)
    assert path.samefile(tmp_path / "best.safetensors")


def test_without_links(tmp_path, monkeypatch) -> None:
    def no_links(*paths) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    folder = CheckpointFolder(tmp_path, 2)
    path = _write(folder, 10, best=True)
    assert not path.samefile(tmp_path / "best.safetensors")
    path.unlink()
    path = _write(folder, 20)
    path.unlink()
    assert folder.best().state["step"] == 10


def test_the_one_before_a_damaged_one_is_used(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 3)
    _write(folder, 10, 20, 30)
    for place in (0, 0.1, 0.5, 1):
        shutil.copytree(tmp_path, tmp_path / "copy")
        copy = CheckpointFolder(tmp_path / "copy", 3)
        _flip(copy.directory / "step-00000030.safetensors", place)
        with pytest.warns(CheckpointWarning) as caught:
            assert copy.newest().state["step"] == 20
        text = str(caught.pop().message)
        assert not caught.list
        assert "step-00000030.safetensors is damaged (" in text
        assert text.endswith(": using step-00000020.safetensors")
        assert str(copy.directory) in text
        shutil.rmtree(copy.directory)


def test_damage_to_the_number_is_seen(tmp_path) -> None:
    """Even where it makes the newest seem older than the one before."""
    folder = CheckpointFolder(tmp_path, 3)
    _write(folder, 10, 20, 30)
    path = tmp_path / "step-00000030.safetensors"
    assert path.read_bytes().count(b'"number":"3"') == 1
    path.write_bytes(path.read_bytes().replace(b'"number":"3"', b'"number":"1"'))
    with pytest.warns(CheckpointWarning, match="step-00000030.* is damaged"):
        assert folder.newest().state["step"] == 20


def test_a_damaged_older_one_does_not_matter(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 3)
    _write(folder, 10, 20, 30)
    for place in (0, 0.5):
        _flip(tmp_path / "step-00000020.safetensors", place)
        assert _newest(folder) == 30


def test_the_best_is_used_where_all_others_are_damaged(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    _write(folder, 10, best=True)
    _write(folder, 20, 30)
    for path in tmp_path.glob("step-*"):
        _flip(path, 1)
    with pytest.warns(CheckpointWarning, match=r"000030.*damaged.*; .*000020.*damaged.*using best"):
        assert folder.newest().state["step"] == 10


def test_all_are_damaged(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    _write(folder, 10, 20)
    for path in tmp_path.iterdir():
        _flip(path, 1)
    with pytest.raises(
        CheckpointError,
        match=r"step-00000020\.safetensors is damaged \(its .*; step-00000010\.safetensors is "
        r"damaged .*, and no checkpoint is whole: put copies .* or delete the folder to train from",
    ):
        folder.newest()


def test_a_damaged_best(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    _write(folder, 10, best=True)
    _flip(tmp_path / "best.safetensors", 1)
    with pytest.raises(DamagedCheckpointError, match=r"best\.safetensors is damaged"):
        folder.best()


def test_after_a_roll_back(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 3)
    _write(folder, 10, 20, 30)
    _write(folder, 20)
    assert _names(folder) == ["10", "20"]
    assert _newest(folder) == 20
    _write(folder, 30)
    assert _names(folder) == ["10", "20", "30"]
    _write(folder, 5)
    assert _names(folder) == ["05"]
    assert _newest(folder) == 5


def test_higher_steps_of_before_a_roll_back_are_not_the_newest(tmp_path) -> None:
    """As when the writer is killed before it has removed them."""
    folder = CheckpointFolder(tmp_path / "folder", 3)
    _write(folder, 10, 20, 30)
    shutil.copytree(folder.directory, tmp_path / "before")
    _write(folder, 15)
    for name in ("step-00000020.safetensors", "step-00000030.safetensors"):
        shutil.copy(tmp_path / "before" / name, folder.directory)
    assert _newest(folder) == 15
    _write(folder, 25)
    assert _names(folder) == ["15", "20", "25"]
    assert _newest(folder) == 25


def test_a_damaged_one_that_was_passed_over_goes(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    _flip(_write(folder, 10, 20), 1)
    _write(folder, 15)
    assert _names(folder) == ["10", "15"]
    assert _newest(folder) == 15


def test_the_checkpoint_of_earlier_versions(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    _write_2(tmp_path / "last.safetensors")
    assert folder.newest().state["step"] == 12
    _write(folder, 20)
    assert _newest(folder) == 20
    assert _names(folder) == ["20", "last"]
    _flip(tmp_path / "step-00000020.safetensors", 1)
    with pytest.warns(CheckpointWarning, match=r"using last\.safetensors"):
        assert folder.newest().state["step"] == 12
    _write(folder, 20, 30)
    assert _names(folder) == ["20", "30"]


# Kills.


def _kill(how: str, directory: Path) -> str:
    script = Path(__file__).with_name("checkpoint_kills.py")
    done = subprocess.run(
        [sys.executable, script, how, directory],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_each_operation(tmp_path) -> None:
    assert int(_kill("everywhere", tmp_path).split()[0]) > 45


def test_killed_at_random_moments(tmp_path) -> None:
    assert _kill("anywhere", tmp_path).startswith("25 kills")


def test_leftovers_of_killed_writers(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    with replace_file(tmp_path / "c.safetensors") as temporary:
        name = temporary.name
        temporary.touch()
    left = {
        n: tmp_path / name.replace(f".{os.getpid()}.", f".{n}.")
        for n in (gone.pid, os.getpid(), os.getppid())
    }
    (tmp_path / "c.safetensors").unlink()
    for path in (*left.values(), tmp_path / ".mine.tmp", tmp_path / "mine.1.tmp"):
        path.touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        left[os.getppid()].name,  # it lives, and may be writing
        ".mine.tmp",
        "mine.1.tmp",
    }


def test_a_leftover_link_is_not_written_through(tmp_path) -> None:
    """A killed writer can leave its temporary name as a second one of a checkpoint."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("first")
    with replace_file(second) as temporary:
        temporary.touch()
    os.link(first, temporary)
    with replace_file(second) as temporary:
        temporary.write_text("second")
    assert first.read_text() == "first"


def test_files_and_names_are_flushed_in_order(tmp_path, monkeypatch) -> None:
    done = []

    def record(name):
        original = getattr(os, name)

        def recorded(*args):
            where = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[1]
            done.append((name, Path(where).name))
            return original(*args)

        monkeypatch.setattr(os, name, recorded)

    record("fsync")
    record("replace")
    path = _save(tmp_path / "folder" / "c")
    temporary = done[0][1]
    assert temporary.startswith(".c.")
    assert temporary.endswith(f".{os.getpid()}.tmp")
    assert done == [("fsync", temporary), ("replace", path.name), ("fsync", "folder")]
