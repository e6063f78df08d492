"""The files of an identity: what each holds, and the refusal of any that is not exactly so.

    <name>.key               the 64-byte libsodium secret key, 128 hex digits, nothing else; mode 0600
    <name>.pub               the public key, 64 hex digits; 0644
    <name>.next.key          the next secret key, as `.key`; to be moved offline
    <name>.succession.json   the chain of statements, canonical JSON; 0644

The folder alone carries the identity; no database is asked. A damaged or missing file is reported and
never replaced: what mends it is a person with a backup.

Source: docs/protocol.md, section 1.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785

from keys.ed25519 import PUBLIC_KEY_BYTES, SECRET_KEY_BYTES, InvalidKeyError, KeyPair, keypair_from_secret
from keys.folder import (
    KEY,
    NEXT_KEY,
    PUB,
    SUCCESSION,
    Folder,
    IdentityExistsError,
    KeyFileError,
    KeyNameError,
    NoIdentityError,
    check_name,
    open_folder,
)
from keys.installation import finish, install, is_pending
from keys.succession import MAX_SUCCESSION_BYTES, Chain, SuccessionEntry, SuccessionError, verify_chain

__all__ = [
    "IdentityExistsError",
    "KeyFileError",
    "KeyNameError",
    "NoIdentityError",
    "StoredIdentity",
    "check_name",
    "next_key_path",
    "read_identity",
    "read_pair",
    "write_identity",
]

_SECRET_HEX = re.compile(rb"[0-9a-f]{%d}" % (2 * SECRET_KEY_BYTES))
_PUBLIC_HEX = re.compile(rb"[0-9a-f]{%d}" % (2 * PUBLIC_KEY_BYTES))


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """What the keys folder says this node is."""

    name: str
    pair: KeyPair
    chain: Chain


def write_identity(
    path: Path, name: str, pair: KeyPair, next_pair: KeyPair, entry: SuccessionEntry, *, stamp: str, replace: bool
) -> tuple[str, ...]:
    """Write a new identity and return the dated names that older files now have.

    It is there whole or not at all, whenever the process dies; the next call or read completes it (keys/installation.py).

    Args:
        path: The keys folder; made with mode 0700 when missing.
        stamp: UTC time as `20260131T235959Z`, for the dated names.
        replace: Let an identity that is here step aside.

    Raises:
        KeyNameError: `name` is no key name.
        IdentityExistsError: Files of a key are here and `replace` is false. Nothing was changed.
        KeyFileError: The folder is unfit or the disk refused.
    """
    check_name(name)
    files = {
        KEY: pair.secret.hex().encode(),
        PUB: pair.public.hex().encode(),
        NEXT_KEY: next_pair.secret.hex().encode(),
        SUCCESSION: rfc8785.dumps([entry.as_json()]),
    }
    with open_folder(path, exclusive=True, create=True) as folder:
        finish(folder)
        return install(folder, name, files, stamp=stamp, replace=replace)


def read_identity(path: Path) -> StoredIdentity:
    """Return the one identity that the folder holds.

    Raises:
        NoIdentityError: There is none, nor a trace of one.
        KeyFileError: It is damaged or exposed, files are missing, or there are two; the message says how to mend it.
    """
    with _settled(path) as folder:
        return _read_identity(folder)


def read_pair(path: Path, name: str) -> KeyPair:
    """Return the key pair called `name`, whatever identity it belongs to.

    Raises:
        KeyNameError: `name` is no key name.
        NoIdentityError: There is no such key.
        KeyFileError: It is damaged or exposed; the message says how to mend it.
    """
    check_name(name)
    with _settled(path) as folder:
        if not folder.names().get(name):
            raise NoIdentityError(f"there is no key {name!r} in {path}")
        return _read_pair(folder, name)


def next_key_path(path: Path, name: str) -> Path:
    """Return where `write_identity` leaves the next key."""
    return path / (check_name(name) + NEXT_KEY)


@contextmanager
def _settled(path: Path) -> Iterator[Folder]:
    """Open the folder for reading, completing first what an interrupted keygen began."""
    with open_folder(path, exclusive=False) as folder:
        if not is_pending(folder):
            yield folder
            return
    with open_folder(path, exclusive=True) as folder:
        finish(folder)
        yield folder


def _read_identity(folder: Folder) -> StoredIdentity:
    name = _only_name(folder)
    pair = _read_pair(folder, name)
    folder.check(name + NEXT_KEY, private=True)
    chain = _read_chain(folder, name)
    if chain.current != pair.public:
        raise KeyFileError(
            f"{folder.path / (name + KEY)} is not the key that {name + SUCCESSION} ends with: restore both from the same backup"
        )
    return StoredIdentity(name=name, pair=pair, chain=chain)


def _only_name(folder: Folder) -> str:
    names = folder.names()
    owned = sorted(name for name, suffixes in names.items() if suffixes & {KEY, SUCCESSION})
    if len(owned) > 1:
        raise KeyFileError(
            f"{folder.path} holds the keys {' and '.join(map(repr, owned))}, a node has one: move the others elsewhere"
        )
    if owned:
        return owned[0]
    if names:
        name, suffixes = next(iter(names.items()))
        raise KeyFileError(
            f"{folder.path} holds {name + min(suffixes)}, but neither {name + KEY} nor {name + SUCCESSION}: "
            "restore them from a backup; keygen --force would make a new identity"
        )
    raise NoIdentityError("this node has no key yet: run manage.py keygen")


def _read_pair(folder: Folder, name: str) -> KeyPair:
    entry = name + KEY
    content = _read(folder, entry, at_most=2 * SECRET_KEY_BYTES, private=True)
    _check_hex(folder, entry, content, _SECRET_HEX, 2 * SECRET_KEY_BYTES)
    try:
        pair = keypair_from_secret(bytes.fromhex(content.decode("ascii")))
    except InvalidKeyError:
        raise KeyFileError(f"{folder.path / entry}: its halves do not match, it is damaged; restore it from a backup") from None
    entry = name + PUB
    try:
        content = folder.read(entry, at_most=2 * PUBLIC_KEY_BYTES, private=False)
    except FileNotFoundError:
        raise KeyFileError(f"{folder.path / entry} is missing: {_remake_pub(folder, name)}") from None
    _check_hex(folder, entry, content, _PUBLIC_HEX, 2 * PUBLIC_KEY_BYTES)
    if content.decode("ascii") != pair.public.hex():
        raise KeyFileError(
            f"{folder.path / entry} is not the public half of {name + KEY}: restore both from the same backup; "
            f"if {name + KEY} is the right one, {_remake_pub(folder, name)}"
        )
    return pair


def _read_chain(folder: Folder, name: str) -> Chain:
    entry = name + SUCCESSION
    content = _read(folder, entry, at_most=MAX_SUCCESSION_BYTES, private=False)
    try:
        value: Any = json.loads(content.decode("utf-8"))
        if rfc8785.dumps(value) != content:
            raise ValueError("not canonical")
        return verify_chain(value)
    except SuccessionError:
        # Its reason quotes the field at fault, and someone may have pasted a secret there.
        raise KeyFileError(f"{folder.path / entry} is damaged (no valid succession): restore it from a backup") from None
    except (ValueError, RecursionError):
        raise KeyFileError(f"{folder.path / entry} is damaged (no canonical JSON): restore it from a backup") from None


def _read(folder: Folder, entry: str, *, at_most: int, private: bool) -> bytes:
    try:
        return folder.read(entry, at_most=at_most, private=private)
    except FileNotFoundError:
        raise KeyFileError(
            f"{folder.path / entry} is missing: restore it from a backup; keygen --force would make a new identity"
        ) from None


def _check_hex(folder: Folder, entry: str, content: bytes, form: re.Pattern[bytes], digits: int) -> None:
    # The content stays out of the message: parse_hex would quote it.
    if len(content) != digits:
        raise KeyFileError(f"{folder.path / entry} has {len(content)} bytes, not {digits}: it is damaged; restore it from a backup")
    if form.fullmatch(content) is None:
        raise KeyFileError(f"{folder.path / entry} is not {digits} lower-case hex digits: it is damaged; restore it from a backup")


def _remake_pub(folder: Folder, name: str) -> str:
    # The second half of a libsodium secret key is the public key.
    return f"make it anew with: tail -c {2 * PUBLIC_KEY_BYTES} {folder.path / (name + KEY)} > {folder.path / (name + PUB)}"
