"""The one live link a peer may have, whichever process of this node holds it: a row taken in a transaction.

Of two links dialled by different sides the one dialled by the lower node_id stays; of two dialled by the same
side the newest, as the listener sees it. A claim whose process is gone, or that was not refreshed for
`CLAIM_LIFE`, counts for nothing.

Source: docs/protocol.md, sections 5 and 9.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction

from federation.models import LinkClaim
from keys.encoding import NodeId

CLAIM_LIFE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Claimant:
    """A link that wants to be the one."""

    peer: NodeId
    process: str
    link: str
    dialler: NodeId
    address: str


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """`granted`, and the token of the link of this process that has to go, if any."""

    granted: bool
    displaced: str | None = None


@transaction.atomic
def claim_link(*, claimant: Claimant, now: datetime) -> ClaimResult:
    """Take the claim on a peer's link, or be told that another link keeps it."""
    row = LinkClaim.objects.select_for_update().filter(peer=claimant.peer.hex()).first()
    displaced = None
    # A row of an earlier process that had this process's pid is a leftover of a crash.
    leftover = row is not None and row.pid == os.getpid() and row.process != claimant.process
    if row is not None and not leftover and is_live(row, now):
        if row.dialler != claimant.dialler.hex() and row.dialler < claimant.dialler.hex():
            return ClaimResult(granted=False)
        displaced = row.link if row.process == claimant.process else None
    LinkClaim.objects.update_or_create(
        peer=claimant.peer.hex(),
        defaults={
            "process": claimant.process,
            "pid": os.getpid(),
            "link": claimant.link,
            "dialler": claimant.dialler.hex(),
            "address": claimant.address[:255],
            "since": now,
            "refreshed": now,
            "state": {},
        },
    )
    return ClaimResult(granted=True, displaced=displaced)


@transaction.atomic
def refresh_claims(*, process: str, states: Mapping[str, Mapping[str, Any]], now: datetime) -> set[str]:
    """Keep the claims of this process alive, with what each link says of itself; return the links that lost theirs.

    Args:
        states: Link token to JSON-able state.
    """
    held = {row.link: row for row in LinkClaim.objects.select_for_update().filter(process=process)}
    for link, row in held.items():
        if link in states:
            row.refreshed = now
            row.state = dict(states[link])
            row.save(update_fields=["refreshed", "state"])
    return {link for link in states if link not in held}


def release_claim(*, process: str, link: str) -> None:
    """Give the claim of an ended link back."""
    LinkClaim.objects.filter(process=process, link=link).delete()


def release_process(*, process: str) -> None:
    LinkClaim.objects.filter(process=process).delete()


def live_claims(now: datetime, *, without: Collection[str] = ()) -> list[LinkClaim]:
    """Return the claims behind which a link stands."""
    return [row for row in LinkClaim.objects.all() if row.process not in without and is_live(row, now)]


def is_live(row: LinkClaim, now: datetime) -> bool:
    return row.refreshed > now - CLAIM_LIFE and _process_exists(row.pid)


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
