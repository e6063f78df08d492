"""One runner a node: a lock on a file in ARK_HOME that names the runner's pid.

The kernel drops the lock when the process ends, however it ends, so a stale file never stands in the way.
"""

import fcntl
import os
from pathlib import Path

from django.conf import settings


class RunnerLockError(Exception):
    """Another runner has this node."""


def lock_path() -> Path:
    return Path(settings.ARK_HOME) / "runner.lock"


class RunnerLock:
    """Held from `acquire` until `release` or the end of the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or lock_path()
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock and write our pid.

        Raises:
            RunnerLockError: another process has it; the message names its pid.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            pid = runner_pid(self._path)
            raise RunnerLockError(f"this node is already running (pid {pid})") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def runner_pid(path: Path | None = None) -> int | None:
    """Return the pid of the process that runs this node now, or None when none does."""
    path = path or lock_path()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None
