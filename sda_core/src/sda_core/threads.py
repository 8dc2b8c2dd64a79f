"""How many threads compute: at most the cores that this process may use, and as many as pay.

Three environment variables say it, to this process and to those that it starts. They are read when
torch is first imported, and with it OpenMP:

    OMP_NUM_THREADS   how many there may be; if not set, the cores, see :func:`cores`
    SDA_THREADS       how many there are; set by ``--threads``, and nothing is measured then
    OMP_WAIT_POLICY   threads wait without computing, if not set: where another process has a core,
                      threads that spin until the last of them is done took 30 times as long
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST, _EXACT = "OMP_NUM_THREADS", "SDA_THREADS"
#: Seconds for which each number of threads is measured.
_MEASURE = 0.15
#: How many times faster another number must be to be taken: the choice is to be stable, since the
#: last bits of sums depend on it.
_GAIN = 1.2
#: Seconds over which speed is averaged, how many times slower is a reason to measure again, and
#: seconds after which that is done anyway.
_WINDOW, _SLOWER, _AGAIN = 2.0, 1.5, 300.0


def prepare() -> None:
    """Set the variables that are not set; called when this package is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if exact := os.environ.get(_EXACT):
        os.environ[_MOST] = exact
    elif _MOST not in os.environ and cores() < _affinity():  # OpenMP itself knows of these
        os.environ[_MOST] = str(cores())
    limit_jax()


def use(threads: int) -> None:
    """Compute with this number of threads, in this process and those that it starts."""
    os.environ[_EXACT] = str(threads)
    set_most(threads)


def set_most(threads: int) -> None:
    """Compute with at most this number of threads, in this process and those that it starts."""
    os.environ[_MOST] = str(threads)
    if _EXACT in os.environ:
        os.environ[_EXACT] = str(threads)
    limit_jax()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def limit_jax() -> None:
    """Let XLA have as many threads as OpenMP."""
    if _MOST in os.environ:
        os.environ["NPROC"] = os.environ[_MOST].split(",")[0]


def cores(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """How many cores this process may use, by its affinity and the quotas of its control groups.

    Args:
        root: Where control groups are mounted.
        groups: Which this process belongs to.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        lines = []
    quotas = []
    for _, controllers, path in lines:
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "cpu" if controllers else root
        here = mounted / path.strip("/")
        # Within a container its group is the root of what is mounted.
        for folder in (here, *here.parents, mounted):
            if folder.is_relative_to(mounted):
                quotas.append(_quota(folder))
    return max(1, math.ceil(min([_affinity(), *quotas])))


def _quota(group: Path) -> float:
    """Cores that a control group has by its quota, of version 2 or 1."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # there is none, or it is "max"
        return math.inf


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread."""
    import torch  # takes a while

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ThreadTuner:
    """Finds with how many threads a step that is done again and again is fastest.

    It is measured before the first step, again when steps have become slower, and every few
    minutes. There are never more threads than when it is made. Within ``with`` torch has the
    number of threads that was found.

    Args:
        fixed: Whether there are always as many as now.

    Attributes:
        threads: The number of threads; None before it is known.
    """

    def __init__(self, *, fixed: bool = False) -> None:
        import torch  # takes a while

        self._set, self._most = torch.set_num_threads, torch.get_num_threads()
        fixed |= self._most == 1 or _EXACT in os.environ
        self.threads: int | None = self._most if fixed else None
        self._fixed, self._due = fixed, not fixed
        self._begin()

    def __enter__(self) -> None:
        """Compute with the number that was found."""
        self._set(self.threads or self._most)

    def __exit__(self, *_: object) -> None:
        """Compute with as many threads as before."""
        self._set(self._most)

    def resume(self, threads: int | None) -> None:
        """Go on with what was found before, if it can be had here."""
        if not self._fixed:
            self._due = threads is None or threads > self._most
            self.threads = None if self._due else threads

    def before_step(self, step: Callable[[], object]) -> None:
        """Measure, if it is time to; within ``with``.

        Args:
            step: What a step does, or most of it, without an effect.
        """
        if not self._due:
            return
        taken: dict[int, float] = {}
        threads = self._most
        while threads and (not taken or taken[min(taken)] < 2 * min(taken.values())):
            taken[threads] = self._seconds_of(step, threads)
            threads //= 2
        good = [n for n, seconds in taken.items() if seconds <= _GAIN * min(taken.values())]
        if self.threads not in good:
            self.threads = min(good)
        self._set(self.threads)
        self._due = False
        self._begin()

    def _seconds_of(self, step: Callable[[], object], threads: int) -> float:
        self._set(threads)
        started = time.perf_counter()
        step()
        if (first := time.perf_counter() - started) > _MEASURE:
            return first
        count, started = 0, time.perf_counter()  # not with the first, which starts the threads
        while (passed := time.perf_counter() - started) < _MEASURE:
            step()
            count += 1
        return passed / count

    def _begin(self) -> None:
        self._since, self._usual = time.monotonic(), math.inf
        self._seconds, self._steps = 0.0, 0

    def after_step(self, seconds: float) -> None:
        """Take in what a step took, for whether it has become slower."""
        self._seconds += seconds
        self._steps += 1
        if not self._fixed and self._seconds > _WINDOW:
            mean = self._seconds / self._steps
            slower, old = mean > _SLOWER * self._usual, time.monotonic() - self._since > _AGAIN
            self._due = slower or old
            self._usual = min(self._usual, mean)
            self._seconds, self._steps = 0.0, 0
