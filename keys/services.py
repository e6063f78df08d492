"""Making, loading and registering this node's keys: the only place where secret bytes and rows meet.

The keys folder is the truth. Rows (`SigningKey`, `PublicKey`) are its public shadow: `register_identity`
draws them anew after a lost database, and nothing is ever loaded from them.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from keys.ed25519 import SEED_BYTES, KeyPair, keypair_from_seed, sign, verify
from keys.encoding import KeyFingerprint, NodeId, fingerprint_of
from keys.files import check_name, next_key_path, read_identity, read_pair, write_identity
from keys.models import PublicKey, SigningKey
from keys.succession import first_statement, verify_chain

__all__ = [
    "DEFAULT_KEY_NAME",
    "GeneratedKey",
    "Identity",
    "export_public_key",
    "generate_keypair",
    "load_identity",
    "load_keypair",
    "prove_signing",
    "register_identity",
    "register_public_key",
]

DEFAULT_KEY_NAME = "node"

SIGNTEST_LABEL = b"arklattice/signtest/v1\n"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is, as the keys folder says."""

    name: str
    """Of the key files; not what the node calls itself (ARK_NODE_NAME)."""
    node_id: NodeId
    pair: KeyPair
    succession: tuple[Mapping[str, Any], ...]
    """The verified chain as JSON values, oldest statement first: what manifests carry."""
    next_key_hash: KeyFingerprint


@dataclass(frozen=True, slots=True)
class GeneratedKey:
    """What `generate_keypair` made."""

    identity: Identity
    next_key: Path
    """The file to move offline."""
    set_aside: tuple[str, ...]
    """Dated names that older files now have; empty unless something was replaced."""


def generate_keypair(name: str = DEFAULT_KEY_NAME, *, force: bool = False) -> GeneratedKey:
    """Make this node's first key and the next one, write both, and register the public halves.

    Files first, rows second, both under the database's lock: a crash between them leaves an identity
    whose rows the next `register_identity` draws.

    Args:
        force: Make a *new* identity beside an old one, whose files get dated names.

    Raises:
        KeyNameError: `name` is no key name.
        IdentityExistsError: There is a key, whole or damaged, and `force` is false.
        KeyFileError: The folder is unfit or the disk refused.
        OperationalError, ProgrammingError: The database is not migrated or not there; nothing was written.
    """
    check_name(name)
    _require_database()
    with transaction.atomic():
        SigningKey.objects.exists()
        pair, next_pair = (keypair_from_seed(secrets.token_bytes(SEED_BYTES)) for _ in range(2))
        now = timezone.now()
        entry = first_statement(pair, next_pair.fingerprint, int(now.timestamp() * 1000))
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        set_aside = write_identity(_folder(), name, pair, next_pair, entry, stamp=stamp, replace=force)
        # Read back: what is said to be there has been loaded once by the rules that will load it tomorrow.
        identity = load_identity()
        register_identity(identity)
    return GeneratedKey(identity=identity, next_key=next_key_path(_folder(), name), set_aside=set_aside)


def load_identity() -> Identity:
    """Return this node's identity from the keys folder alone; no database is needed.

    Raises:
        NoIdentityError: There is none.
        KeyFileError: It is damaged or exposed; the message says how to mend it. Never replaced by a new one.
    """
    stored = read_identity(_folder())
    return Identity(
        name=stored.name,
        node_id=stored.chain.node_id,
        pair=stored.pair,
        succession=tuple(entry.as_json() for entry in stored.chain.entries),
        next_key_hash=stored.chain.next_key_hash,
    )


def load_keypair(name: str = DEFAULT_KEY_NAME) -> KeyPair:
    """Return the key pair called `name` from the keys folder.

    Raises:
        KeyNameError, NoIdentityError, KeyFileError: As `load_identity`.
    """
    return read_pair(_folder(), name)


def export_public_key(name: str = DEFAULT_KEY_NAME) -> str:
    """Return the public key called `name` as 64 hex digits.

    Raises:
        KeyNameError, NoIdentityError, KeyFileError: As `load_identity`.
    """
    return load_keypair(name).public.hex()


def register_identity(identity: Identity) -> SigningKey:
    """Return the active row of this identity, drawing it and those of its older keys anew where they are missing.

    Another identity's active row becomes `replaced`. Cheap when nothing has changed: one read.
    """
    public_key = identity.pair.public.hex()
    active = SigningKey.objects.select_related("public_key").filter(status=SigningKey.Status.ACTIVE).first()
    if active is not None and _says(active, identity):
        return active
    chain = verify_chain(identity.succession)
    with transaction.atomic():
        others = SigningKey.objects.select_for_update().filter(status=SigningKey.Status.ACTIVE)
        others.exclude(public_key__public_key=public_key).update(status=SigningKey.Status.REPLACED)
        for entry in chain.entries:
            current = entry.statement.next_key == chain.current
            row, _ = SigningKey.objects.update_or_create(
                public_key=register_public_key(entry.statement.next_key),
                defaults={
                    "name": identity.name,
                    "node_id": identity.node_id.hex(),
                    "next_key_hash": entry.statement.next_key_hash.hex(),
                    "status": SigningKey.Status.ACTIVE if current else SigningKey.Status.RETIRED,
                    "created_at": _moment(entry.statement.issued_at),
                },
            )
    return row


def register_public_key(public_key: bytes) -> PublicKey:
    """Return the row of a public key, adding it when it is new. The caller has checked the key (`check_public_key`)."""
    row, _ = PublicKey.objects.get_or_create(
        public_key=public_key.hex(), defaults={"fingerprint": fingerprint_of(public_key).hex()}
    )
    return row


def prove_signing(pair: KeyPair) -> None:
    """Sign fresh bytes with the pair and verify them.

    Raises:
        InvalidSignatureError: The signature does not verify.
    """
    message = SIGNTEST_LABEL + secrets.token_bytes(32)
    verify(pair.public, message, sign(pair, message))


def _folder() -> Path:
    return Path(settings.ARK_KEYS_DIR)


def _says(row: SigningKey, identity: Identity) -> bool:
    return (row.name, row.node_id, row.public_key.public_key, row.next_key_hash) == (
        identity.name,
        identity.node_id.hex(),
        identity.pair.public.hex(),
        identity.next_key_hash.hex(),
    )


def _moment(time_ms: int) -> datetime:
    """Return the time a statement names; now for one beyond what a date can hold."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC)
    except (ValueError, OverflowError):
        return timezone.now()


def _require_database() -> None:
    """Raise OperationalError when the SQLite file is missing: connecting would make an empty one."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite" and not name.startswith((":memory:", "file:")) and not Path(name).exists():
        raise OperationalError("no such table: the database does not exist")
