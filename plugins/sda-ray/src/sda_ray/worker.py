"""A trial as Ray Tune sees it: a process that gives results one by one.

The trial is done by a thread. It waits at each value that it reports until Tune asks for the next
one, or ends it.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sda_core.errors import ClusterError
from sda_ray import scratch
from sda_ray.work import PRUNED, Job, LeftError, do_trial

#: Names of the time and of the metric in Tune's results.
TIME, VALUE = "epoch", "value"
#: Seconds between two looks at whether the study is left; and where each costs a request.
_GLANCE, _FAR_GLANCE = 1.0, 5.0

#: What a training goes on from, in its run directory.
_TRAINED = ("checkpoints", "history.json", "metrics.jsonl")

_Result = dict[str, Any]


class Worker(tune.Trainable):
    """One trial in a process of its own."""

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        """Get to know the trial."""
        assert job is not None
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all visible to those without one
        trial = config["trial"]
        self._number, self._parameters = trial["number"], trial["parameters"]
        self._job = scratch.begin(job, self._number)
        self._leaving = self._job.leaving
        self._glance = _GLANCE if job.storage is None else _FAR_GLANCE
        # What is done before there is any value: no scheduler compares with it.
        self._last: _Result = {TIME: 0, VALUE: math.nan}
        self._results: queue.Queue[_Result | BaseException] = queue.Queue()
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def step(self) -> _Result:
        """Go on to the next value, or to the end."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put(None)
        while True:
            try:
                result = self._results.get(timeout=self._glance)
            except queue.Empty:
                self._look()
                continue
            if isinstance(result, BaseException):
                raise result
            self._last = self._last | result
            return self._last

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy what the training has written, for this trial or a worse one to go on from."""
        directory = self._job.trial(self._number)
        for name in _TRAINED:
            _copy(directory / name, Path(checkpoint_dir) / name)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from what this trial, or a better one, had written."""
        directory = self._job.trial(self._number)
        for name in _TRAINED:
            _copy(Path(checkpoint) / name, directory / name)

    def cleanup(self) -> None:
        """End the trial, where it has not ended; one of a population is only left."""
        if self._thread.is_alive():
            self._look()
            if self._job.interval is not None:
                self._leave.set()
            self._answers.put(PRUNED)
            self._thread.join()
        scratch.leave(self._job, self._number)

    def _look(self) -> None:
        with suppress(ClusterError):  # another time it answers
            if self._leaving.exists():
                self._leave.set()

    def _work(self) -> None:
        result: _Result | BaseException = {"done": True}
        try:
            do_trial(self._job, self._number, self._parameters, self._report, self._check)
            scratch.upload(self._job, self._number)
        except BaseException as error:  # noqa: BLE001 - raised again by `step`
            result = error
        self._results.put(result)

    def _report(self, time: int, value: float) -> str | None:
        if self._job.stage == "assimilate":  # which writes no checkpoints
            scratch.upload(self._job, self._number)
        self._results.put({TIME: time, VALUE: value})
        reason = self._answers.get()
        self._check()
        return reason

    def _check(self) -> None:
        if self._leave.is_set():
            raise LeftError


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder, and put it in the place of another."""
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, new)
        shutil.rmtree(target, ignore_errors=True)
    else:
        shutil.copyfile(source, new)
    new.replace(target)
