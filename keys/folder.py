"""The keys folder: how it is opened and locked, and which files in it are fit to be read.

Everything goes through a descriptor of the folder and never follows a link, so nobody can swap a
directory or a file between the check and the use.

    KeysError
    └── KeyFileError            a file or folder is not as it must be; the message says how to mend it
        ├── KeyNameError        no name a key may have
        ├── NoIdentityError     there is no key here
        └── IdentityExistsError a new key would take the place of one that is here

No message quotes what a file holds: a damaged private key is still one.

Source: docs/protocol.md, section 1.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keys.ed25519 import KeysError

__all__ = [
    "KEY",
    "MAX_KEY_NAME_CHARS",
    "NEXT_KEY",
    "PUB",
    "SUCCESSION",
    "SUFFIXES",
    "Folder",
    "IdentityExistsError",
    "KeyFileError",
    "KeyNameError",
    "NoIdentityError",
    "check_name",
    "open_folder",
]

KEY = ".key"
PUB = ".pub"
NEXT_KEY = ".next.key"
SUCCESSION = ".succession.json"
# `.key` last: whoever moves an identity's files in this order can be interrupted and still sees that it is one.
SUFFIXES = (PUB, NEXT_KEY, SUCCESSION, KEY)
PRIVATE_SUFFIXES = frozenset({KEY, NEXT_KEY})

FOLDER_MODE = 0o700
PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644

MAX_KEY_NAME_CHARS = 64
_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_KEY_NAME_CHARS - 1}}}")
# O_NONBLOCK: a FIFO in place of a key must not hold the node up.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class KeyFileError(KeysError):
    """A key file or its folder cannot be used as it is; the message says how to mend it."""


class KeyNameError(KeyFileError):
    """The name is no key name (or would be a path)."""


class NoIdentityError(KeyFileError):
    """This node has no key."""


class IdentityExistsError(KeyFileError):
    """Something of an identity is here already, whole or damaged."""


def check_name(name: str) -> str:
    """Return `name` if a key may be called so.

    Raises:
        KeyNameError: It is not `[a-z0-9][a-z0-9._-]{0,63}`, or ends in `.next` (its file would be another's next key).
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        shown = repr(name if not isinstance(name, str) or len(name) <= MAX_KEY_NAME_CHARS else name[:MAX_KEY_NAME_CHARS] + "…")
        raise KeyNameError(
            f"{shown} is no key name: expected 1 to {MAX_KEY_NAME_CHARS} of a-z, 0-9, '.', '_', '-', first a letter or digit"
        )
    if name.endswith(".next"):
        raise KeyNameError(f"{name!r} is no key name: names ending in .next are kept for next keys")
    return name


@dataclass(frozen=True, slots=True)
class Folder:
    """An open, checked and locked keys folder, or a folder in it; comes only from `open_folder` and `inner`."""

    path: Path
    descriptor: int

    def entries(self) -> list[str]:
        return sorted(os.listdir(self.descriptor))  # noqa: PTH208 - pathlib lists no descriptors

    def names(self) -> dict[str, set[str]]:
        """Return each key name that has files here, with the suffixes of those files."""
        found: dict[str, set[str]] = {}
        for entry in self.entries():
            # `.next.key` before `.key`: the longer suffix says what the file is.
            suffix = next((suffix for suffix in (NEXT_KEY, SUCCESSION, PUB, KEY) if entry.endswith(suffix)), None)
            if suffix is not None and _NAME.fullmatch(entry.removesuffix(suffix)):
                found.setdefault(entry.removesuffix(suffix), set()).add(suffix)
        return found

    def status(self, entry: str) -> os.stat_result | None:
        """Return the entry's status without following a link; None when there is no such entry."""
        try:
            return os.stat(entry, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def create(self, entry: str, content: bytes, mode: int) -> None:
        """Write a new file and fsync it; nothing that is there is touched."""
        descriptor = os.open(entry, _CREATE_FLAGS, PRIVATE_MODE, dir_fd=self.descriptor)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, entry: str, *, at_most: int, private: bool) -> bytes:
        """Return the content of a file that nobody else can have written or, when private, read.

        Raises:
            FileNotFoundError: There is no such entry.
            KeyFileError: A link, no regular file, a wrong owner, mode or number of names, or more than `at_most` bytes.
        """
        shown = self.path / entry
        try:
            descriptor = os.open(entry, _READ_FLAGS, dir_fd=self.descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            # A link, a socket or an unreadable file: lstat tells which, in the words used below.
            self.check(entry, private=private)
            reason = os.strerror(error.errno or 0)
            raise KeyFileError(f"{shown} cannot be read ({reason}): run as its owner, or run chmod u+r {shown}") from None
        try:
            _check_status(shown, os.fstat(descriptor), private=private)
            content = b""
            while len(content) <= at_most and (chunk := os.read(descriptor, at_most + 1 - len(content))):
                content += chunk
        except OSError as error:
            raise KeyFileError(f"{shown} cannot be read: {os.strerror(error.errno or 0)}") from None
        finally:
            os.close(descriptor)
        if len(content) > at_most:
            raise KeyFileError(f"{shown} is longer than {at_most} bytes: it is damaged; restore it from a backup")
        return content

    def check(self, entry: str, *, private: bool) -> None:
        """Raise KeyFileError if the entry exists and is not as a key file must be."""
        status = self.status(entry)
        if status is not None:
            _check_status(self.path / entry, status, private=private)

    def sync(self) -> None:
        os.fsync(self.descriptor)

    @contextmanager
    def inner(self, entry: str) -> Iterator["Folder"]:
        """Open a folder inside this one, under the same rules."""
        descriptor = _open_checked(self.path / entry, entry, self.descriptor)
        try:
            yield Folder(self.path / entry, descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def open_folder(path: Path, *, exclusive: bool, create: bool = False) -> Iterator[Folder]:
    """Open the keys folder under its lock, shared or exclusive, waiting for whoever holds it.

    Raises:
        NoIdentityError: There is no folder, and `create` is false.
        KeyFileError: A link, no folder, another's, or one that others may write to.
    """
    if create:
        _make(path)
    try:
        descriptor = _open_checked(path, path, None)
    except FileNotFoundError:
        raise NoIdentityError("this node has no key yet: run manage.py keygen") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError as error:
            raise KeyFileError(f"{path} cannot be locked: {os.strerror(error.errno or 0)}; put ARK_HOME on a local disk") from None
        yield Folder(path, descriptor)
    finally:
        os.close(descriptor)


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        try:
            path.mkdir(mode=FOLDER_MODE)
        except FileExistsError:
            return
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be made: {os.strerror(error.errno or 0)}") from None


def _open_checked(shown: Path, path: Path | str, parent: int | None) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise KeyFileError(
                f"{shown} is a link or no folder: put the true folder there, or set ARK_HOME to where it is"
            ) from None
        raise KeyFileError(f"{shown} cannot be opened: {os.strerror(error.errno or 0)}") from None
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise KeyFileError(_wrong_owner(shown, status.st_uid))
        if status.st_mode & 0o022:
            raise KeyFileError(
                f"{shown} can be written to by others (mode {_mode(status)}): run chmod 700 {shown} and check what is in it"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_status(shown: Path, status: os.stat_result, *, private: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise KeyFileError(f"{shown} is a link: put the file itself there")
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{shown} is no regular file: move it away and restore the file from a backup")
    if status.st_uid != os.geteuid():
        raise KeyFileError(_wrong_owner(shown, status.st_uid))
    if status.st_nlink != 1:
        raise KeyFileError(
            f"{shown} has {status.st_nlink} names (hard links): remove the others, or replace it by a copy of itself"
        )
    if private and status.st_mode & 0o077:
        raise KeyFileError(
            f"{shown} can be read or written by others (mode {_mode(status)}): run chmod 600 {shown}, "
            "and replace the key if anyone may have read it"
        )
    if status.st_mode & 0o022:
        raise KeyFileError(
            f"{shown} can be written to by others (mode {_mode(status)}): run chmod 644 {shown} and check what is in it"
        )


def _wrong_owner(shown: Path, owner: int) -> str:
    return f"{shown} belongs to user {owner}, not to {os.geteuid()} who runs this: run as its owner, or chown it"


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
