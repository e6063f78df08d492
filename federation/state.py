"""What a running node writes of itself for other processes, and what the operator asked of it for good.

Source: docs/architecture.md, section 2 (federationstatus, autosync).
"""

import os
from datetime import datetime
from typing import Any

from federation.models import NodeState


def mark_started(*, now: datetime, detail: dict[str, Any]) -> None:
    NodeState.objects.update_or_create(
        pk=1, defaults={"pid": os.getpid(), "started_at": now, "heartbeat_at": now, "detail": detail}
    )


def heartbeat(*, now: datetime, detail: dict[str, Any]) -> None:
    NodeState.objects.filter(pk=1).update(heartbeat_at=now, detail=detail)


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
