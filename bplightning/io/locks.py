"""Locks between processes of one machine: the system lets go of them when their process ends, however it ends."""

from __future__ import annotations

import time

PATIENCE = 8.0
"""Seconds to wait for a lock: processes that load data outlive one that was killed by a few."""


def locked(descriptor: int, *, patience: float = PATIENCE) -> bool | None:
    """Lock an open file or folder until it is closed.

    Args:
        descriptor: The open file or folder.
        patience: Seconds to wait at most.

    Returns:
        Whether it is locked now; `None` where the system, or its file system, has no locks.
    """
    try:
        import fcntl  # not every system has it
    except ImportError:
        return None
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return None
        else:
            return True
