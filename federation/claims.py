"""The one live link a peer may have, whichever process of this node holds it: a row taken in a transaction.

Of two links dialled by different sides the one dialled by the lower node_id stays; of two dialled by the same
side the newest, as the listener sees it. A claim whose process is gone, or that was not refreshed for
`CLAIM_LIFE`, counts for nothing. A process is told by its pid and the moment it started, for pids are used again.

Source: docs/protocol.md, sections 5 and 9.
"""

import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.db import connection, transaction

from federation.models import LinkClaim
from keys.encoding import NodeId

CLAIM_LIFE = timedelta(seconds=30)
CLAIM_LOCK = 0x61726B6C  # PostgreSQL's advisory lock for taking a claim: a row that is not there yet cannot be locked
_STARTED_DIGITS = 16


def process_token() -> str:
    """Return a token of this process, 32 hex digits: when it started, and chance."""
    return f"{_started(os.getpid()) or 0:0{_STARTED_DIGITS}x}{secrets.token_hex(8)}"


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
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CLAIM_LOCK])
    row = LinkClaim.objects.filter(peer=claimant.peer.hex()).first()
    displaced = None
    if row is not None and (row.process == claimant.process or is_live(row, now)):
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


def show_link(*, process: str, link: str, state: Mapping[str, Any], now: datetime) -> None:
    """Write what a link says of itself: from now on it is shown as one that is up."""
    LinkClaim.objects.filter(process=process, link=link).update(refreshed=now, state=dict(state))


def refresh_claims(*, process: str, states: Mapping[str, Mapping[str, Any]], now: datetime) -> None:
    """Keep the claims of this process alive, with what each link says of itself.

    Args:
        states: Link token to JSON-able state.
    """
    with transaction.atomic():
        for link, state in sorted(states.items()):
            show_link(process=process, link=link, state=state, now=now)


def held_links(*, process: str) -> set[str]:
    """Return the tokens of the links whose claims this process holds."""
    return set(LinkClaim.objects.filter(process=process).values_list("link", flat=True))


def release_claim(*, process: str, link: str) -> None:
    """Give the claim of an ended link back."""
    LinkClaim.objects.filter(process=process, link=link).delete()


def release_process(*, process: str) -> None:
    LinkClaim.objects.filter(process=process).delete()


def live_claims(now: datetime, *, without: Collection[str] = ()) -> list[LinkClaim]:
    """Return the claims behind which a process stands; `state` is empty until the link is up."""
    return [row for row in LinkClaim.objects.order_by("peer") if row.process not in without and is_live(row, now)]


def links_up(now: datetime) -> list[LinkClaim]:
    """Return the claims whose link is up; before that the other side may still refuse it."""
    return [row for row in live_claims(now) if row.state]


def is_live(row: LinkClaim, now: datetime) -> bool:
    return row.refreshed > now - CLAIM_LIFE and _is_running(row)


def _is_running(row: LinkClaim) -> bool:
    started = row.process[:_STARTED_DIGITS]
    known = int(started, 16) if len(row.process) == 2 * _STARTED_DIGITS and not started.strip("0123456789abcdef") else 0
    now_there = _started(row.pid)
    if known and now_there is not None:
        return known == now_there
    return _process_exists(row.pid)


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where the system does not tell."""
    try:
        # The name in the second field may hold blanks and parentheses; what follows the last one has fixed places.
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
