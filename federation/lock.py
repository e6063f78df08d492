"""One runner a node: a lock on a file in ARK_HOME that names the runner's pid.

The kernel drops the lock when the process ends, however it ends, so a stale file never stands in the way.

The file's second line says why the node accepts no packets, when it does not: the database, which holds the rest of
what a node says of itself, is then what cannot be written. The lines have fixed places in bytes that are there from
the start, so that a full disk does not keep them from being written.
"""

import fcntl
import os
import time
from pathlib import Path

from django.conf import settings

PID_BYTES = 32
NOTE_BYTES = 256
# Asking who runs takes a shared lock for a moment; who wants to run waits longer than that.
PATIENCE_S = 1.0


class RunnerLockError(Exception):
    """Another runner has this node, or the lock cannot be used; the message is for the operator."""


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
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RunnerLockError(f"{self._path} cannot be used as a lock: {error.strerror}") from None
        deadline = time.monotonic() + PATIENCE_S
        while not _locked(descriptor, fcntl.LOCK_EX):
            pid = runner_pid(self._path)
            if pid is not None or time.monotonic() >= deadline:
                os.close(descriptor)
                raise RunnerLockError(f"this node is already running (pid {pid})") from None
            time.sleep(0.02)
        os.pwrite(descriptor, f"{os.getpid()}".ljust(PID_BYTES - 1).encode() + b"\n" + b" " * NOTE_BYTES, 0)
        self._descriptor = descriptor

    def note(self, text: str) -> None:
        """Let other processes read why no packets are accepted; an empty text: they are.

        Raises:
            OSError: the file cannot be written.
        """
        if self._descriptor is not None:
            encoded = " ".join(text.split()).encode()[:NOTE_BYTES].ljust(NOTE_BYTES)
            os.pwrite(self._descriptor, encoded, PID_BYTES)

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def runner_pid(path: Path | None = None) -> int | None:
    """Return the pid of the process that runs this node now, or None when none does."""
    pid = _read_locked(path)[:PID_BYTES].decode("ascii", "replace").strip()
    return int(pid) if pid.isdigit() else None


def runner_note(path: Path | None = None) -> str:
    """Return what the process that runs this node noted, "" when it runs and accepts packets or does not run."""
    return _read_locked(path)[PID_BYTES:].decode("utf-8", "replace").strip()


def _read_locked(path: Path | None) -> bytes:
    """Return the file's content while a runner has the lock, otherwise nothing."""
    try:
        descriptor = os.open(path or lock_path(), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        return b"" if _locked(descriptor, fcntl.LOCK_SH) else os.pread(descriptor, PID_BYTES + NOTE_BYTES, 0)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
