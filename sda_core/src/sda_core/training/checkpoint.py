"""Checkpoints of a training: one safetensors file that holds all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sda_core.config import differences
from sda_core.errors import CheckpointError
from sda_core.files import replace_file

CHECKPOINT_SCHEMA = 2


def save_checkpoint(
    path: Path, tensors: dict[str, Tensor], counters: dict[str, int], settings: Mapping[str, Any]
) -> None:
    """Write a checkpoint and rename it into place.

    Args:
        path: The file.
        tensors: Weights, averaged weights, optimizer state.
        counters: Epoch and step.
        settings: The configuration that it belongs to, of JSON values.
    """
    header = {
        "schema": str(CHECKPOINT_SCHEMA),
        "counters": json.dumps(counters),
        "settings": json.dumps(settings),
    }
    with replace_file(path) as temporary:
        # Copies, since weights may share storage; on the host, where there is room for them.
        copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        save_file(copies, temporary, header)


def load_checkpoint(
    path: Path, settings: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read a checkpoint.

    Args:
        path: The file.
        settings: The configuration that it should belong to.

    Returns:
        The tensors and counters that were saved.

    Raises:
        CheckpointError: It is damaged, or of another schema or configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}): delete it to train from the start"
        ) from error
    if header.get("schema") != str(CHECKPOINT_SCHEMA):
        raise CheckpointError(
            f"checkpoint {path} has schema {header.get('schema')}, and this version of sda-core "
            f"reads {CHECKPOINT_SCHEMA}: delete it to train from the start"
        )
    changed = differences(json.loads(header["settings"]), settings)
    if changed:
        raise CheckpointError(
            f"checkpoint {path} belongs to another configuration. It differs in "
            f"{', '.join(changed)}. Go on with the one it was written with, use another directory, "
            "or delete it to train from the start"
        )
    return tensors, json.loads(header["counters"])
