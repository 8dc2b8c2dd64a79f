"""The finished parts of a generation that is under way, one file per block of trajectories.

They lie in ``.parts`` in the data set's directory, beside a manifest of what they are parts of. A
part is written under a temporary name and renamed, so that a part with its own name is whole. It
is an ``.npz`` file, whose entries zip guards with a CRC-32.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import numpy as np

from sda_core.data.base import Recipe
from sda_core.errors import DataError
from sda_core.io.files import file_lock, replace_file, write_text


@attrs.frozen
class Parts:
    """The parts of one data set.

    Attributes:
        directory: The data set's directory.
        recipe: What the numbers depend on.
    """

    directory: Path
    recipe: Recipe

    @staticmethod
    def folder_in(directory: Path) -> Path:
        """Where the parts of the data set in a directory lie."""
        return directory / ".parts"

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return self.folder_in(self.directory)

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"block-{block:06d}.npz"

    def done(self) -> list[int]:
        """The blocks that are there."""
        return [block for block in self.recipe.blocks if self.path(block).exists()]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from making the same data set; a killed process lets go.

        Raises:
            DataError: Another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / "lock", "generation of data", DataError):
            yield

    def claim(self, created_by: Mapping[str, str]) -> None:
        """Write the manifest, or check that the parts of an earlier run belong to this one.

        Args:
            created_by: Versions of the software that makes the parts.

        Raises:
            DataError: The parts belong to another configuration, or were made by other versions.
        """
        mend = f"choose another directory, or delete {self.folder} to start afresh"
        if self._manifest.exists():
            recipe, versions = read_manifest(self.folder)
            differences = recipe.differences(self.recipe) + [
                f"version of {name} ({versions.get(name, 'none')} there, "
                f"{created_by.get(name, 'none')} now)"
                for name in sorted(versions.keys() | created_by.keys())
                if versions.get(name) != created_by.get(name)
            ]
            if differences:
                raise DataError(
                    f"{self.folder} holds the parts of an unfinished data set that differs from "
                    f"the one asked for in {', '.join(differences)}. To mend: {mend}."
                )
        elif self.done():
            raise DataError(
                f"{self.folder} holds parts without the manifest that says what they are parts "
                f"of. To mend: {mend}."
            )
        else:
            manifest = {"recipe": attrs.asdict(self.recipe), "created_by": dict(created_by)}
            write_text(self._manifest, json.dumps(manifest, indent=2))

    def save(self, block: int, x: np.ndarray) -> None:
        r"""Keep the trajectories of a block, (n, L, C, \*S), float32."""
        with replace_file(self.path(block)) as temporary, temporary.open("wb") as file:
            np.savez(file, x=x, block=block, data_id=self.recipe.data_id)

    def load(self, block: int) -> np.ndarray:
        r"""The trajectories of a block, (n, L, C, \*S), float32.

        Raises:
            DataError: The part is damaged, or is another block's.
        """
        path = self.path(block)
        try:
            with np.load(path, allow_pickle=False) as part:
                if (int(part["block"]), str(part["data_id"])) == (block, self.recipe.data_id):
                    x: np.ndarray = part["x"]
                    return x
                damage = "it belongs to another block or data set"
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            damage = str(error)
        raise DataError(
            f"the finished part {path} cannot be used: {damage}. To mend: delete it and run "
            "'sda simulate' again, which makes it anew."
        )

    def remove(self) -> None:
        """Delete the parts; the manifest goes last, so that what is left still has its name."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path == self._manifest):
            path.unlink()
        with suppress(OSError):  # another process has come to ask for the same data set
            self.folder.rmdir()


def read_manifest(folder: Path) -> tuple[Recipe, dict[str, str]]:
    """What the parts in a folder are parts of, and the versions of the software that made them.

    Raises:
        DataError: The manifest is missing or damaged.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return Recipe(**manifest["recipe"]), manifest["created_by"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the manifest of the unfinished data set in {folder} cannot be read ({error}). "
            f"To mend: delete {folder} to start afresh."
        ) from error
