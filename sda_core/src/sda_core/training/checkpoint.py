"""A checkpoint of a training: one safetensors file that holds all of it.

Its header has, as text: the schema; the state and the settings, as JSON; its number in the order
of writing; and a checksum, the SHA-256 of all bytes of the file but the checksum's own. A byte that
is changed, missing or too many is so seen, wherever it is. Reading a checkpoint executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sda_core.config import differences, unstructure
from sda_core.config.compare import flatten
from sda_core.errors import CheckpointError, ConfigError
from sda_core.io.files import replace_file
from sda_core.plugins.names import cause_text, did_you_mean
from sda_core.training.config import TrainConfig
from sda_core.training.meter import Meter
from sda_core.training.state import history_tensors, prefixed

CHECKPOINT_SCHEMA = 3

#: Tensors, and what is in the header besides them.
Contents = tuple[dict[str, Tensor], dict[str, str]]

#: What stands before the checksum in the header, and the length of a checksum.
_FIELD, _LENGTH = b'"checksum":"', 64


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not as it was written.

    Args:
        path: The file.
        what: What is wrong with it.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"checkpoint {path} is damaged ({what}): delete it, or put a copy in its place"
        )
        self.what = f"{path.name} is damaged ({what})"


@attrs.frozen(eq=False)
class Checkpoint:
    """A checkpoint that was read, and is as it was written.

    Attributes:
        path: The file.
        tensors: Weights, averaged weights, optimizer state and other tensors, on the host.
        state: The rest of the state, of JSON values; ``step`` is the number of steps done.
        settings: The configuration that it belongs to.
        number: Its number in the order of writing, which steps need not follow: a training that
            is rolled back writes lower ones again.
    """

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    settings: dict[str, Any]
    number: int = 0


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    number: int = 0,
) -> None:
    """Write a checkpoint and rename it into place when it is on the disk.

    At most, three times the size of the tensors is needed on the host.

    Args:
        path: The file.
        tensors: Tensors of any shapes, strides and devices; they may share storage.
        state: The rest of the state, of JSON values; floats come back exactly, NaN and infinities
            too.
        settings: The configuration that it belongs to, of JSON values.
        number: Its number in the order of writing.

    Raises:
        CheckpointError: It cannot be written.
    """
    header = {
        "schema": str(CHECKPOINT_SCHEMA),
        "number": str(number),
        "state": json.dumps(state),
        "settings": json.dumps(settings),
        "checksum": "0" * _LENGTH,
    }
    # Copies, since weights may share storage; on the host, where there is room for them.
    copies = {
        k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for k, v in tensors.items()
    }
    # In memory, since writing to a file would go by a temporary name that is not ours.
    data = save(copies, header)
    del copies
    found = _checksum(data)
    assert found is not None  # since the header has one
    at, checksum = found
    with _writing(path) as temporary, temporary.open("wb") as file, memoryview(data) as view:
        for part in (view[:at], checksum.encode(), view[at + _LENGTH :]):
            file.write(part)


def link_checkpoint(source: Path, path: Path) -> None:
    """Give a checkpoint a second name; copy it where the file system has no links.

    Raises:
        CheckpointError: It cannot be written.
    """
    with _writing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        with replace_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be written ({error}): mend that, and resume from the one "
            "before, which is as it was"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, and check that it is as it was written.

    Files of earlier schemas are migrated in memory; those of schema 2 have no checksum. At most,
    twice the size of the file is needed.

    Args:
        path: The file.

    Raises:
        DamagedCheckpointError: It is not as it was written, or cannot be read.
        CheckpointError: There is none, or it is of an unknown schema.
    """
    try:
        tensors, header = _contents(path)
        while (schema := header.get("schema", "none")) != str(CHECKPOINT_SCHEMA):
            if schema not in _MIGRATIONS:
                raise CheckpointError(
                    f"checkpoint {path} has schema {schema}, and this version of sda-core reads "
                    f"{CHECKPOINT_SCHEMA} and migrates {', '.join(_MIGRATIONS)}: use the version "
                    "that wrote it, or train in another directory"
                )
            tensors, header = _MIGRATIONS[schema](tensors, header)
        state, settings = json.loads(header["state"]), json.loads(header["settings"])
        return Checkpoint(path, tensors, state, settings, int(header["number"]))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}: train first") from error
    except (OSError, SafetensorError, LookupError, ValueError) as error:
        raise DamagedCheckpointError(path, cause_text(error)) from error


def _contents(path: Path) -> Contents:
    """The tensors and the header of a file, verified."""
    data = path.read_bytes()
    found = _checksum(data)
    if found is not None:
        at, checksum = found
        if data[at : at + _LENGTH] != checksum.encode():
            raise DamagedCheckpointError(path, "its content does not match its checksum")
    tensors = load(data)
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, str] = json.loads(data[8:end]).get("__metadata__", {})
    if found is None and header.get("schema", "none") in ("none", str(CHECKPOINT_SCHEMA)):
        raise DamagedCheckpointError(path, "it has no checksum")
    return tensors, header


def read_number(path: Path) -> int:
    """A checkpoint's number in the order of writing, not verified; 0 if it has none to be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int((file.metadata() or {}).get("number", 0))
    except (OSError, SafetensorError, ValueError):
        return 0


def _checksum(data: bytes) -> tuple[int, str] | None:
    """Where in a file the checksum stands, and what it must be; None if it has none."""
    end = 8 + int.from_bytes(data[:8], "little")
    at = data.find(_FIELD, 8, end)
    if at < 0:
        return None
    at += len(_FIELD)
    with memoryview(data) as view:
        digest = hashlib.sha256(view[:at])
        digest.update(view[at + _LENGTH :])
    return at, digest.hexdigest()


def _from_2(tensors: dict[str, Tensor], header: dict[str, str]) -> Contents:
    """Schema 2 had weights, optimizer state, epoch and step, always at the end of an epoch."""
    empty = torch.empty(0, dtype=torch.float64)
    meter = Meter(torch.device("cpu")).state_dict()
    state = {
        **json.loads(header["counters"]),
        "batch": 0,
        "device": "cpu",
        "best_loss": float("inf"),
        "best_epoch": 0,
        "slow_down": 1.0,
        "rollbacks": 0,
        "skipped": [],
        "grad_norm": float("nan"),
        "learning_rate": float("nan"),
        "arithmetic": {},
        "threads": None,
    }
    tensors = {
        **tensors,
        **{f"meter.{k}": v for k, v in meter.items()},
        "losses": empty,
        **prefixed("history", history_tensors(())),
    }
    header = {
        "schema": "3",
        "number": "0",
        "state": json.dumps(state),
        "settings": header["settings"],
    }
    return tensors, header


#: From each earlier schema to the next.
_MIGRATIONS: dict[str, Callable[[dict[str, Tensor], dict[str, str]], Contents]] = {"2": _from_2}


def check_settings(
    checkpoint: Checkpoint, settings: Mapping[str, Any], may_change: Collection[str] = ()
) -> None:
    """Refuse to resume a checkpoint with another configuration.

    An option of the training that the checkpoint does not have is newer than it, and had its
    default. One that ``settings`` does not have does not count.

    Args:
        checkpoint: The checkpoint.
        settings: The configuration to resume with, of JSON values.
        may_change: Keys that may differ, such as ``"train.epochs"``, or tables, such as
            ``"train"``.

    Raises:
        CheckpointError: It differs elsewhere; names all keys with both values.
        ConfigError: ``may_change`` has a key that there is not.
    """
    there, asked = flatten(checkpoint.settings), flatten(json.loads(json.dumps(settings)))
    defaults = flatten({"train": unstructure(TrainConfig())})
    _check_known(may_change, there.keys() | asked.keys() | defaults.keys())
    there = {k: v for k, v in (defaults | there).items() if k in asked or k not in defaults}

    def fixed(table: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in table.items() if not any(_is_in(k, m) for m in may_change)}

    there, asked = fixed(there), fixed(asked)
    if changed := differences(there, asked):
        keys = [k for k in sorted(there.keys() | asked.keys()) if there.get(k) != asked.get(k)]
        raise CheckpointError(
            f"checkpoint {checkpoint.path} belongs to another configuration. It differs in "
            f"{', '.join(changed)}. Resume with the one it was written with, train in another "
            f"directory, or allow the change with {' '.join(f'--may-change {k}' for k in keys)}"
        )


def _is_in(key: str, table: str) -> bool:
    return key == table or key.startswith(f"{table}.")


def _check_known(may_change: Collection[str], keys: Collection[str]) -> None:
    known = {key[:i] for key in keys for i in range(len(key) + 1) if f"{key}."[i] == "."}
    for wanted in may_change:
        if wanted not in known:
            tables = ", ".join(sorted(name for name in known if "." not in name))
            raise ConfigError(
                f"--may-change {wanted}: there is no such key in the configuration: "
                f"{did_you_mean(wanted, known)}the tables are {tables}"
            )
