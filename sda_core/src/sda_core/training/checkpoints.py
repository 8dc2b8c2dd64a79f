"""The folder of a training's checkpoints."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from sda_core.config import differences
from sda_core.errors import CheckpointError, CheckpointWarning
from sda_core.io.files import remove_leftovers
from sda_core.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    check_settings,
    link_checkpoint,
    load_checkpoint,
    read_number,
    save_checkpoint,
)

_STEP = re.compile(r"step-(\d{8,})\.safetensors")


@attrs.frozen
class CheckpointFolder:
    """The checkpoints of a training: the last few and the best, the newest of which can be found.

    Each is written under a temporary name, flushed and renamed, and only then older ones are
    removed. The newest is the last one written, and not that of the highest step: a training that
    was rolled back continues from a lower one. A kill at any moment so leaves the newest whole.

    Attributes:
        directory: The folder.
        keep: How many are kept, besides the best.
    """

    directory: Path = attrs.field(converter=Path)
    keep: int

    def write(
        self,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        settings: Mapping[str, Any],
        best: bool = False,
    ) -> Path:
        """Write a checkpoint, and remove those that are not kept.

        Args:
            tensors: Tensors of any shapes, strides and devices.
            state: The rest of the state, of JSON values; ``step`` is the number of steps done.
            settings: The configuration that it belongs to, of JSON values.
            best: Whether it is the best so far.

        Returns:
            ``step-<step>.safetensors``.

        Raises:
            CheckpointError: It cannot be written.
        """
        remove_leftovers(self.directory)
        path = self.directory / f"step-{state['step']:08d}.safetensors"
        number = 1 + max((read_number(p) for p in self._files()), default=0)
        if best:
            # The best first: it counts when the newest is looked for, so that a kill in between
            # cannot leave a newest state that takes another for the best.
            save_checkpoint(self._best, tensors, state, settings, number)
            link_checkpoint(self._best, path)
        else:
            save_checkpoint(path, tensors, state, settings, number)
        self._prune(path)
        return path

    def newest(self) -> Checkpoint | None:
        """The checkpoint to resume from: the last one written that is whole.

        Warns:
            CheckpointWarning: A newer one is damaged; says which, how, and what is used instead.

        Raises:
            CheckpointError: All are damaged, or one is of an unknown schema.
        """
        found: Checkpoint | None = None
        damaged: list[str] = []
        for path in self._files():
            if found is not None and read_number(path) <= found.number:
                continue
            try:
                found = load_checkpoint(path)
            except DamagedCheckpointError as error:
                damaged.append(error.what)
        if damaged:
            what = f"in {self.directory}, {'; '.join(damaged)}"
            if found is None:
                raise CheckpointError(
                    f"{what}, and no checkpoint is whole: put copies in their place, or delete the "
                    "folder to train from the start"
                )
            warnings.warn(CheckpointWarning(f"{what}: using {found.path.name}"), stacklevel=2)
        return found

    def before(self, step: int) -> Checkpoint | None:
        """The checkpoint of the highest step that is not above one, and is whole."""
        found: Checkpoint | None = None
        for path in self._files():
            with suppress(DamagedCheckpointError):
                checkpoint = load_checkpoint(path)
                at = checkpoint.state["step"]
                if at <= step and (found is None or at > found.state["step"]):
                    found = checkpoint
        return found

    def best(self) -> Checkpoint | None:
        """The best checkpoint, if one was written as such.

        Raises:
            CheckpointError: It is damaged, or of an unknown schema.
        """
        return load_checkpoint(self._best) if self._best.is_file() else None

    @property
    def _best(self) -> Path:
        return self.directory / "best.safetensors"

    @property
    def _last(self) -> Path:
        """The only checkpoint that earlier versions wrote."""
        return self.directory / "last.safetensors"

    def _steps(self) -> list[Path]:
        """The checkpoints that are named after steps, by step."""
        found = ((_STEP.fullmatch(path.name), path) for path in self.directory.glob("step-*"))
        return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]

    def _files(self) -> list[Path]:
        """All checkpoints, highest step first. In all but rare cases that is the newest first."""
        others = (path for path in (self._best, self._last) if path.is_file())
        return [*reversed(self._steps()), *others]

    def _prune(self, newest: Path) -> None:
        steps = self._steps()
        count = steps.index(newest) + 1
        # Higher steps are what a roll-back left behind, or damaged and gone past by now.
        stale, kept = steps[count:], [self._last, *steps[:count]]
        for path in [*stale, *kept[: -self.keep]]:
            path.unlink(missing_ok=True)


def starting_point(
    folder: CheckpointFolder,
    settings: Mapping[str, Any],
    may_change: Collection[str],
    *,
    required: bool,
) -> tuple[tuple[dict[str, Tensor], dict[str, Any]] | None, str | None]:
    """The state that a training starts from.

    Args:
        folder: Its checkpoints.
        settings: Its configuration, with the data's ``data_id``.
        may_change: Keys and tables that may differ from the checkpoint's.
        required: Whether there must be a checkpoint.

    Returns:
        Tensors and values of the newest checkpoint, None without one; and the reason why the
        training has ended there, None if it has not, or its configuration has changed.

    Raises:
        CheckpointError: There is none, none that is whole, or it is of another configuration.
    """
    checkpoint = folder.newest()
    if checkpoint is None and required:
        raise CheckpointError(
            f"there is no checkpoint in {folder.directory} to resume from: train without --resume "
            "to start"
        )
    if checkpoint is None:
        return None, None
    written = {"data_id": settings["data_id"]} | checkpoint.settings
    check_settings(attrs.evolve(checkpoint, settings=written), settings, may_change)
    ended = None if differences(written, settings) else checkpoint.state.get("ended")
    return (checkpoint.tensors, checkpoint.state), ended
