"""Event files for TensorBoard, a folder for each stage of a run.

References:
    - TensorBoard, https://www.tensorflow.org/tensorboard
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sda_core.config import component, dump_toml, option, unstructure
from sda_core.figures import Picture
from sda_core.tracker import Histogram, Session, Tracker, Value

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: After a kill, what was logged in these last seconds is missing.
FLUSH_SECONDS = 20


@component
class TensorBoard(Tracker):
    """Writes event files: numbers, histograms, pictures, and configuration and results as text.

    Good values: with the default, ``tensorboard --logdir runs`` shows all runs below ``runs``.
    """

    directory: str = option(
        default="tensorboard",
        help="where event files go, from the run directory on; an absolute path suits one run only",
    )

    def open(self, run: Any, stage: str) -> Session:
        """Start, or go on with, the tracking of a stage."""
        config = dump_toml(unstructure(run.experiment, manager=run.manager))
        return _EventFile(Path(run.directory) / self.directory / stage, config)


class _EventFile(Session):
    def __init__(self, folder: Path, config: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        self._writer.add_text("config", _code(config), 0)
        self._step: int | None = None

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Write values."""
        if self._step is None or step < self._step:
            self._hide_from(step)
        self._step = step
        for name, value in values.items():
            if isinstance(value, Histogram):
                _add_histogram(self._writer, name, value, step)
            elif isinstance(value, Picture):
                _add_picture(self._writer, name, value, step)
            else:
                self._writer.add_scalar(name, float(value), step)

    def close(self, summary: Mapping[str, Any] | None, error: BaseException | None = None) -> None:
        """Write the results and close the file."""
        if summary is not None:
            text = json.dumps(dict(summary), indent=2)
            self._writer.add_text("results", _code(text), self._step or 0)
        self._writer.close()

    def _hide_from(self, step: int) -> None:
        """Hide what was written of steps from one on: the training was killed, or rolled back."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = Event(session_log=SessionLog(status=SessionLog.START))
        # The configuration, at step 0, stays.
        self._writer._get_file_writer().add_event(start, max(step, 1))


def _code(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _add_histogram(writer: SummaryWriter, name: str, histogram: Histogram, step: int) -> None:
    counts, edges = np.array(histogram.counts), np.array(histogram.edges)
    centres = (edges[:-1] + edges[1:]) / 2
    writer.add_histogram_raw(
        name,
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=counts @ centres,
        sum_squares=counts @ centres**2,
        bucket_limits=edges.tolist(),  # upper limits: the first bin is all below the first edge
        bucket_counts=[0.0, *counts.tolist()],
        global_step=step,
    )


def _add_picture(writer: SummaryWriter, name: str, picture: Picture, step: int) -> None:
    """As it is encoded in its file, so that animations are shown as such."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with TemporaryDirectory() as folder:
        path = picture.save(Path(folder))
        encoded = path.read_bytes()
        with Image.open(path) as image:
            width, height = image.size
    value = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
    summary = Summary(value=[Summary.Value(tag=name, image=value)])
    writer._get_file_writer().add_summary(summary, step)
