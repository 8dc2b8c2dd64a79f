"""The run that was trained last."""

from __future__ import annotations

from pathlib import Path

from sda_core.errors import CheckpointError

#: Folders below the one that is searched: runs of an experiment, and members of an ensemble.
_DEPTH = 3


def newest_run(folder: str | Path) -> Path:
    """The run directory in a folder whose checkpoint is newest.

    Args:
        folder: Where to look, three folders deep; hidden ones are left out.

    Raises:
        CheckpointError: There is none.
    """
    found = [
        checkpoint
        for depth in range(1, _DEPTH + 1)
        for checkpoint in Path(folder).glob("[!.]*/" * depth + "checkpoints/*.safetensors")
    ]
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {folder}, in {_DEPTH} levels of folders, to resume from: "
            "give the experiment or its run directory"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent.parent
