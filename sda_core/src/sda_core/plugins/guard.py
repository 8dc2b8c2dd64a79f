"""What keeps a plugin to itself: its prints off stdout, and its exits from ending the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from types import FrameType
from typing import TextIO

from sda_core.errors import PluginError
from sda_core.plugins.names import cause_text

_Handler = Callable[[int, FrameType | None], object]


@contextmanager
def contained() -> Iterator[None]:
    """Send what a plugin prints to stderr, and let nothing that it raises end the process.

    Raises:
        PluginError: It raised SystemExit, KeyboardInterrupt or the like. A real Ctrl-C passes.
    """
    with stdout_to_stderr(), _interrupts() as interrupted:
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            if interrupted():
                raise
            raise PluginError(f"it raised {cause_text(error)}, which would end sda") from error


@contextmanager
def stdout_to_stderr() -> Iterator[TextIO]:
    """Send to stderr what this process prints, in Python or not.

    Yields:
        The stdout that there was.
    """
    stdout = results = sys.stdout
    with ExitStack() as stack:
        with suppress(AttributeError, OSError, ValueError):  # closed, or captured in memory
            if stdout.fileno() == 1:
                stdout.flush()
                results = stack.enter_context(
                    os.fdopen(os.dup(1), "w", encoding=stdout.encoding, errors=stdout.errors)
                )
                os.dup2(2, 1)
                stack.callback(os.dup2, results.fileno(), 1)
                stack.callback(stdout.flush)
        stack.enter_context(redirect_stdout(sys.stderr))
        yield results


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether a signal to stop came meanwhile; it is handled as ever."""
    came = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: came  # only the main thread can handle signals
        return

    def noting(before: _Handler) -> _Handler:
        def note(number: int, frame: FrameType | None) -> None:
            nonlocal came
            came = True
            before(number, frame)

        return note

    replaced = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        if callable(before):
            replaced[number] = before, noting(before)
            signal.signal(number, replaced[number][1])
    try:
        yield lambda: came
    finally:
        for number, (before, note) in replaced.items():
            if signal.getsignal(number) is note:  # a plugin may have set its own
                signal.signal(number, before)
