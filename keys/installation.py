"""How a new identity comes into the keys folder, all of it or nothing, whenever the power goes.

1. Every file is written and fsynced in `.keygen-unfinished/`. A crash here leaves no identity; the next
   keygen clears the folder away.
2. That folder is renamed `.keygen-<stamp>/`. This one step is the birth of the identity.
3. Each file is linked to its place and its first name removed; with `--force` what stood there, and every
   other identity, first takes the dated name `<name>-replaced-<stamp>`. A crash here is mended by `finish`,
   which whoever opens the folder next calls: it repeats step 3, each part of which may be done already.

Links, unlike renames, never overwrite. Dated names hold capitals, so they are no key names and are never loaded.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from keys.folder import (
    FOLDER_MODE,
    KEY,
    PRIVATE_MODE,
    PRIVATE_SUFFIXES,
    PUBLIC_MODE,
    SUCCESSION,
    SUFFIXES,
    Folder,
    IdentityExistsError,
    KeyFileError,
)

__all__ = ["finish", "install", "is_pending"]

UNFINISHED = ".keygen-unfinished"
_COMMITTED = re.compile(r"\.keygen-([0-9]{8}T[0-9]{6}Z(?:-[0-9]{1,3})?)")
# A file of this name beside the staged ones: the operator said --force, so what is in the way steps aside.
REPLACE_MARK = "replace"


def install(folder: Folder, name: str, files: Mapping[str, bytes], *, stamp: str, replace: bool) -> tuple[str, ...]:
    """Bring in a new identity and return the dated names that older files now have.

    Args:
        folder: Locked exclusively; `finish` was called.
        files: Suffix to content, one for each of `SUFFIXES`.
        stamp: UTC time as `20260131T235959Z`.
        replace: Let what is there step aside.

    Raises:
        IdentityExistsError: Files of a key are here, and `replace` is false. Nothing was changed.
        KeyFileError: The disk refused; no identity was made, or it is whole and `finish` will place it.
    """
    if not replace:
        _refuse_if_occupied(folder)
    stamp = _unused(folder, stamp)
    committed = f".keygen-{stamp}"
    with _disk_errors(folder):
        os.fchmod(folder.descriptor, FOLDER_MODE)
        _clear(folder)
        try:
            os.mkdir(UNFINISHED, FOLDER_MODE, dir_fd=folder.descriptor)
            with folder.inner(UNFINISHED) as staged:
                for suffix, content in files.items():
                    staged.create(name + suffix, content, PRIVATE_MODE if suffix in PRIVATE_SUFFIXES else PUBLIC_MODE)
                if replace:
                    staged.create(REPLACE_MARK, b"", PRIVATE_MODE)
                staged.sync()
            os.rename(UNFINISHED, committed, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
        except BaseException:
            # A full disk, or Ctrl-C: take away what was half written, it was nobody's identity yet.
            with suppress(OSError):
                _clear(folder)
            raise
        folder.sync()
        return _place(folder, committed)


def is_pending(folder: Folder) -> bool:
    """True when an identity was born and not all its files are in their place."""
    return any(_COMMITTED.fullmatch(entry) for entry in folder.entries())


def finish(folder: Folder) -> None:
    """Complete an installation that was interrupted after its birth. The folder is locked exclusively.

    Raises:
        KeyFileError: Something else stands where a file belongs, or the disk refused.
    """
    for entry in folder.entries():
        if _COMMITTED.fullmatch(entry):
            with _disk_errors(folder):
                _place(folder, entry)


def _place(folder: Folder, committed: str) -> tuple[str, ...]:
    aside: list[str] = []
    stamp = committed.removeprefix(".keygen-")
    with folder.inner(committed) as staged:
        entries = staged.entries()
        new_name = next((entry.removesuffix(SUCCESSION) for entry in entries if entry.endswith(SUCCESSION)), None)
        replace = REPLACE_MARK in entries
        # Without a succession here everything is in its place already, and only clearing up was interrupted.
        if replace and new_name is not None:
            for name, suffixes in folder.names().items():
                if name != new_name and suffixes & {KEY, SUCCESSION}:
                    aside += [_set_aside(folder, name, suffix, stamp) for suffix in SUFFIXES if suffix in suffixes]
        # The succession goes last but for the mark: it is what tells the new identity's name to whoever comes after a crash.
        for entry in sorted(entries, key=lambda entry: (entry == REPLACE_MARK, entry.endswith(SUCCESSION))):
            if entry != REPLACE_MARK:
                aside += _place_one(folder, staged, entry, stamp, replace=replace)
            os.unlink(entry, dir_fd=staged.descriptor)
        staged.sync()
    os.rmdir(committed, dir_fd=folder.descriptor)
    folder.sync()
    return tuple(aside)


def _place_one(folder: Folder, staged: Folder, entry: str, stamp: str, *, replace: bool) -> list[str]:
    aside: list[str] = []
    there, here = folder.status(entry), staged.status(entry)
    if there is not None and here is not None and (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
        return aside
    if there is not None:
        if not replace:
            raise KeyFileError(f"{folder.path / entry} is in the way of the new key in {staged.path}: move one of the two away")
        suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if entry.endswith(suffix))
        aside.append(_set_aside(folder, entry.removesuffix(suffix), suffix, stamp))
    os.link(entry, entry, src_dir_fd=staged.descriptor, dst_dir_fd=folder.descriptor, follow_symlinks=False)
    folder.sync()
    return aside


def _set_aside(folder: Folder, name: str, suffix: str, stamp: str) -> str:
    dated = f"{name}-replaced-{stamp}{suffix}"
    if folder.status(dated) is not None:
        raise KeyFileError(f"{folder.path / dated} is in the way: move it elsewhere")
    os.rename(name + suffix, dated, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
    return dated


def _refuse_if_occupied(folder: Folder) -> None:
    names = folder.names()
    whole = [name for name, suffixes in names.items() if {KEY, SUCCESSION} <= suffixes]
    if whole:
        raise IdentityExistsError(
            f"there is a key already, {whole[0]!r} in {folder.path}: rotatekey replaces a key and keeps the identity; "
            "--force makes a new identity, which every peer must be told"
        )
    if names:
        name, suffixes = next(iter(names.items()))
        there = " and ".join(name + suffix for suffix in sorted(suffixes))
        missing = " and ".join(name + suffix for suffix in (KEY, SUCCESSION) if suffix not in suffixes)
        raise IdentityExistsError(
            f"there is {there} in {folder.path}, but not {missing}: restore what is missing from a backup, "
            "or move the rest away; --force makes a new identity"
        )


def _unused(folder: Folder, stamp: str) -> str:
    """Return `stamp`, numbered when a key was replaced in the same second before."""
    entries = folder.entries()
    for candidate in (stamp, *(f"{stamp}-{number}" for number in range(2, 1000))):
        if not any(f"-replaced-{candidate}." in entry for entry in entries):
            return candidate
    raise KeyFileError(f"{folder.path} holds too many replaced keys of this second: try again")


def _clear(folder: Folder) -> None:
    if folder.status(UNFINISHED) is not None:
        shutil.rmtree(UNFINISHED, dir_fd=folder.descriptor)


@contextmanager
def _disk_errors(folder: Folder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeyFileError(
            f"{folder.path} cannot be written: {os.strerror(error.errno or 0)}; mend that and run the command again"
        ) from None
