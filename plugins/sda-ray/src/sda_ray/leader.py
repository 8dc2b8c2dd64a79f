"""Trials that are asked for from outside of the cluster, at an address ``ray://HOST:10001``.

Only a process that is part of the cluster can conduct Ray Tune, so an actor on the head does, the
leader. The study stays with whoever asked: the leader asks there which trial is next, and tells
there how trials go. So nothing is known on the head only, and its loss, or that of the connection,
costs no more than a kill does.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.exceptions import RayError, RayTaskError

from sda_core.errors import ClusterError, SDAError, StoppedError, SweepError
from sda_core.io.progress import ProgressOption, announce
from sda_ray.book import Book
from sda_ray.member import last_line
from sda_ray.study import Trial

if TYPE_CHECKING:
    from sda_ray.sweep import RayTune
    from sda_ray.work import Job

#: Where names of leaders are known, to all who use the cluster.
_NAMESPACE = "sda"
#: Longest time for which the leader keeps a question waiting, in seconds.
_GLANCE = 1.0
#: Seconds that a leader that has left has for telling whoever asked, and being ended there.
_FAREWELL = 3.0
#: Seconds after which a leader that nobody needs ends.
_FORGOTTEN = 60.0

#: A method of the book, and its arguments; or "warn", and a text.
_Call = tuple[str, tuple[Any, ...]]


def is_outside() -> bool:
    """Whether this process is connected to a cluster, and no part of it."""
    return bool(ray.util.client.ray.is_connected())


def on_head(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; on the head of the cluster, if this process is no part of it.

    Raises:
        ClusterError: The head cannot do that.
    """
    if not is_outside():
        return function(*arguments)
    try:
        return ray.get(_remote(function, max_retries=0).remote(*arguments))
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, SDAError):
            raise cause from error
        raise ClusterError(
            "the head of the cluster cannot do its part of the sweep; it needs the same packages "
            f"as this machine. Ray says: {last_line(error)}"
        ) from error


def lead(job: Job, book: Book, longest: int, stopping: Callable[[], bool]) -> bool:
    """Have the trials done that a study lacks, by a leader; see ``sda_ray.tuning.do_trials``.

    Raises:
        ClusterError: The leader is lost, or the connection to it.
        SweepError: Another call has taken over the study.
    """
    options = {
        "name": _name(job.storage or job.directory),
        "namespace": _NAMESPACE,
        "lifetime": "detached",
    }
    leader = _remote(_Leader, max_concurrency=8, **options).remote()
    ended = leader.lead.remote(job, book.sweep, book.earlier, longest)
    leader.watch.remote([ended])
    is_over = False
    try:
        is_late, is_left = _follow(leader, ended, book, stopping)
        is_over = True
    except RayTaskError as error:
        raise error.cause from error
    except (RayError, ConnectionError) as error:
        raise ClusterError(
            "what leads the sweep on the head of the cluster was lost, or the connection to it; "
            "the same command with --resume goes on from what trials have saved. Ray says: "
            f"{' '.join(str(error).split())}"
        ) from error
    finally:
        with suppress(RayError, ConnectionError):
            if is_over:
                ray.kill(leader)
            else:  # its trials save what they have done, and it ends by itself
                ray.get(leader.leave.remote())
        book.leave()
    if is_left and not stopping():
        raise SweepError(
            "this study was taken over by another `sda sweep --resume`, with the same "
            "cluster.storage or directory; what was done until then is kept"
        )
    return is_late


def end_earlier(place: str, progress: ProgressOption, stopping: Callable[[], bool]) -> None:
    """Wait for the end of what leads a study for a call that was lost or killed.

    Args:
        place: Where trials are kept.
        progress: Whether that is said.
        stopping: Whether to wait no more.

    Raises:
        StoppedError: It was waited for in vain.
    """
    is_told, done_at = False, None
    while True:
        try:
            earlier: Any = ray.get_actor(_name(place), _NAMESPACE)
        except ValueError:  # there is none
            return
        if not is_told:
            announce(progress, "waiting until trials of an earlier call have ended")
            is_told = True
        with suppress(RayError):
            if ray.get(earlier.leave.remote()):
                done_at = done_at or time.monotonic()
                if time.monotonic() > done_at + _FAREWELL:
                    ray.kill(earlier)
        if stopping():
            raise StoppedError("sweep stopped; the same command with --resume goes on from there")
        time.sleep(0.1)


def _name(place: str) -> str:
    return f"sda sweep in {place}"


def _remote(what: Any, **options: Any) -> Any:
    """A remote function or class, on the head: no other machine can end it by its loss."""
    remote: Any = ray.remote(what)
    there = {HEAD_NODE_RESOURCE_NAME: 0.001}
    return remote.options(num_cpus=0, resources=there, scheduling_strategy="DEFAULT", **options)


def _follow(leader: Any, ended: Any, book: Book, stopping: Callable[[], bool]) -> tuple[bool, bool]:
    """Answer and record, to the end; whether the time was over, and whether trials were left."""
    is_told = False
    while True:
        if not is_told and stopping():
            leader.leave.remote()
            is_told = True
        is_over = bool(ray.wait([ended], timeout=0)[0])
        outcome = ray.get(ended if is_over else leader.take.remote())
        calls: list[_Call] = outcome.calls if is_over else outcome
        for name, arguments in calls:
            if name == "warn":
                warnings.warn(arguments[0], stacklevel=4)
            elif name != "start":
                getattr(book, name)(*arguments)
            elif not is_over:
                leader.answer.remote(book.start())
        if is_over:
            return outcome.is_late, outcome.is_left


@attrs.frozen
class _Outcome:
    """How it ended.

    Attributes:
        is_late: Whether the time budget was spent.
        is_left: Whether the leader was told to leave the study.
        calls: What has not been taken.
    """

    is_late: bool
    is_left: bool
    calls: list[_Call]


class _Leader:
    """Has the trials done; an actor, whose methods run side by side."""

    def __init__(self) -> None:
        self._calls: queue.Queue[_Call] = queue.Queue()
        self._answers: queue.Queue[Trial | None] = queue.Queue()
        self._watched: queue.Queue[Any] = queue.Queue()
        self._leaving, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        threading.Thread(target=self._watch, daemon=True).start()

    def lead(self, job: Job, sweep: RayTune, earlier: list[Trial], longest: int) -> _Outcome:
        """Have the trials done."""
        from sda_ray.tuning import do_trials

        self._idle.clear()
        warnings.showwarning = lambda message, *rest: self.tell("warn", str(message))
        try:
            book = _Book(sweep, earlier, self)
            is_late = do_trials(job, book, longest, self._leaving.is_set)
        finally:
            self._idle.set()
        return _Outcome(is_late, self._leaving.is_set(), self._taken())

    def watch(self, ended: list[Any]) -> None:
        """Know what whoever asked waits for; where it is lost, so is whoever asked."""
        self._watched.put(ended[0])

    def _watch(self) -> None:
        """Leave the study when whoever asked is lost, and end when nobody needs this process."""
        with suppress(queue.Empty, RayError):
            ray.get(self._watched.get(timeout=_FORGOTTEN))
        self._leaving.set()
        self._idle.wait()
        time.sleep(_FORGOTTEN)  # by then whoever asked has ended it
        ray.kill(ray.get_runtime_context().current_actor)

    def leave(self) -> bool:
        """Leave the study; whether that is done."""
        self._leaving.set()
        return self._idle.wait(_GLANCE)

    # --- from the book to whoever asked ---

    def tell(self, name: str, *arguments: Any) -> None:
        self._calls.put((name, arguments))

    def ask(self) -> Trial | None:
        self.tell("start")
        while not self._leaving.is_set():
            with suppress(queue.Empty):
                return self._answers.get(timeout=_GLANCE)
        return None

    def take(self) -> list[_Call]:
        """What there is to record and to answer; waits a little for it."""
        with suppress(queue.Empty):
            return [self._calls.get(timeout=_GLANCE), *self._taken()]
        return []

    def _taken(self) -> list[_Call]:
        return [self._calls.get() for _ in range(self._calls.qsize())]

    def answer(self, trial: Trial | None) -> None:
        self._answers.put(trial)


@attrs.frozen
class _Book:
    """The book, in the process of the leader."""

    sweep: RayTune
    earlier: list[Trial]
    leader: _Leader

    def start(self) -> Trial | None:
        return self.leader.ask()

    def report(
        self,
        number: int,
        epoch: int,
        value: float,
        seconds: float = 0.0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.leader.tell("report", number, epoch, value, seconds, parameters)

    def end(self, number: int, cause: str | None = None) -> None:
        self.leader.tell("end", number, cause)

    def leave(self) -> None:
        """Nothing: whoever asked does that when all is recorded."""
