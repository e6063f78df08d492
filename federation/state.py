"""What a running node writes of itself for other processes, and what the operator asked of it for good.

Source: docs/architecture.md, section 2 (federationstatus, autosync).
"""

import os
from datetime import datetime
from typing import Any

from django.db.models import F

from federation.models import NodeState
from peers.models import PolicyRevision
from peers.records import bump_policy

# The row of PolicyRevision that counts changes of visibility alone; row 1 counts these and everything else.
VISIBILITY = 2


def mark_started(*, now: datetime, detail: dict[str, Any]) -> None:
    NodeState.objects.update_or_create(
        pk=1, defaults={"pid": os.getpid(), "started_at": now, "heartbeat_at": now, "detail": detail}
    )


def heartbeat(*, now: datetime, detail: dict[str, Any]) -> None:
    NodeState.objects.filter(pk=1).update(pid=os.getpid(), heartbeat_at=now, detail=detail)


def mark_stopped() -> None:
    NodeState.objects.filter(pk=1).update(pid=None)


def auto_sync() -> bool:
    """Return whether the node dials CORE and SANDBOX peers by itself; on unless the operator stopped it."""
    stored = NodeState.objects.filter(pk=1).values_list("auto_sync", flat=True).first()
    return True if stored is None else stored


def set_auto_sync(on: bool) -> None:
    NodeState.objects.update_or_create(pk=1, defaults={"auto_sync": on})


def node_state() -> NodeState | None:
    return NodeState.objects.filter(pk=1).first()


def bump_visibility() -> None:
    """Tell running nodes that packets were hidden, shown again or purged. Call it inside the transaction of the change.

    They then rebuild what they offer, which a change of trust alone does not ask for.
    """
    if not PolicyRevision.objects.filter(pk=VISIBILITY).update(number=F("number") + 1):
        PolicyRevision.objects.get_or_create(pk=VISIBILITY)
        PolicyRevision.objects.filter(pk=VISIBILITY).update(number=F("number") + 1)
    bump_policy()


def visibility_revision() -> int:
    """Return the number that grows with every change of what may be seen of the stored packets."""
    return PolicyRevision.objects.filter(pk=VISIBILITY).values_list("number", flat=True).first() or 0
