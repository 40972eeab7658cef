"""Ending at SIGINT and SIGTERM: at once, with the shell's status and nothing half-written; training ends after a step.

Python runs a signal's handler only between two of its own instructions, and code of a library can take many seconds for
one. So a thread watches too: where the program has not ended by itself a second later, it ends it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from bplightning.io.files import remove_unfinished

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 1.0
"""Seconds in which a program may end by itself."""

_graceful = False
_received: int | None = None
"""The signal that ends this process."""

_watched: int | None = None
"""The process whose signals are watched here; a copy of it (a fork) is another one."""


class Interrupted(SystemExit):
    """The end of a program that was asked to stop; its status is the shell's: 128 plus the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def let_finish(waits: bool) -> None:
    """Say whether what runs now ends by itself after a signal, as training does with a checkpoint.

    Args:
        waits: Whether it does.
    """
    global _graceful
    _graceful = waits


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """Within this, SIGINT and SIGTERM end the program: `Interrupted` is raised, or the process is ended a second later.

    Other threads than the main one, and the processes that this one forks, are left as they are.
    """
    global _watched, _received
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    # A shell has its background jobs ignore SIGINT, and nohup and others do the same.
    before = {signum: handler for signum in SIGNALS if (handler := signal.getsignal(signum)) != signal.SIG_IGN}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _watched, _received = os.getpid(), None
    let_finish(False)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="ends_on_signals").start()
    for signum in before:
        signal.signal(signum, _end)
    ends = False
    try:
        yield
    except Interrupted:
        ends = True
        if _received is not None:  # at once: to take the libraries down in order can take seconds
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(128 + _received)
        raise
    finally:
        if not ends:  # an end that hangs is still watched
            signal.set_wakeup_fd(wakeup)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            _watched = None
            os.write(writer, b"\0")
            os.close(writer)


def _end(signum: int, _: FrameType | None) -> None:
    global _received
    if os.getpid() == _watched:
        _received = signum
        say(f"bplightning: stopped by {signal.Signals(signum).name}")
        raise Interrupted(signum)
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def say(line: str) -> None:
    """Write a line to standard error, from a signal's handler too, which may have come in the midst of another line.

    Args:
        line: The line.
    """
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except RuntimeError:  # in the midst of another line indeed
        os.write(2, f"{line}\n".encode())
    except (OSError, ValueError, AttributeError):  # nobody reads it any more
        return


def _watch(reader: int) -> None:
    """End the process a second after a signal, if it is still there and has nothing to finish."""
    while (received := os.read(reader, 1)) not in (b"", b"\0"):
        signum = received[0]
        if signum not in SIGNALS or _graceful:
            continue
        threading.Event().wait(GRACE)
        remove_unfinished()
        os._exit(128 + signum)
    os.close(reader)


def _leave_to_others() -> None:
    """In a process forked from this one: what it is told must not reach the watching thread of its parent."""
    global _watched
    if _watched is not None:
        _watched = None
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_others)
