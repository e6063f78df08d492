"""Identities on disk for the tests of key files."""

import base64
import hashlib
import stat

from keys.ed25519 import keypair_from_seed
from keys.files import write_identity
from keys.succession import first_statement

T0 = 1_760_000_000_000
STAMP = "20260131T235959Z"


def pairs(number=0):
    """Return the current and the next pair of identity `number`."""
    return tuple(keypair_from_seed(hashlib.sha256(b"%d %s" % (number, role)).digest()) for role in (b"current", b"next"))


def write(folder, name="node", number=0, *, stamp=STAMP, replace=False):
    """Write identity `number` and return what write_identity returns."""
    pair, next_pair = pairs(number)
    entry = first_statement(pair, next_pair.fingerprint, T0)
    return write_identity(folder, name, pair, next_pair, entry, stamp=stamp, replace=replace)


def snapshot(folder):
    """Return everything in the folder: each entry's type, mode, owner, number of names and content."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = None
        if stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        name = "." if path == folder else str(path.relative_to(folder))
        found[name] = (status.st_mode, status.st_uid, status.st_nlink, content)
    return found


def shows_secret(text, *secrets):
    """True when any 8 bytes in a row of a secret's seed stand in the text: as hex, base64 or Python's repr."""
    for secret in secrets:
        seed = secret[:32]
        for start in range(0, 25):
            piece = seed[start : start + 8]
            if piece.hex() in text.lower() or repr(piece)[2:-1] in text:
                return True
        encoded = base64.b64encode(seed).decode().rstrip("=")
        if any(encoded[start : start + 10] in text for start in range(len(encoded) - 10)):
            return True
    return False
