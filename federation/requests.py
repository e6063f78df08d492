"""What a command asks of the running node, through a row both can see.

A command writes a request and waits; a process of the node takes it (once) and writes the answer. A request
nobody takes is removed by the command that gave up, or swept as old.
"""

import time
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from federation.models import NodeRequest
from keys.encoding import EncodingError, NodeId, parse_node_id

SYNC = "sync"
PATIENCE_S = 30.0
KEPT = timedelta(minutes=5)


def ask(*, kind: str, argument: dict[str, Any]) -> int:
    """Write a request and return its number; old ones are swept."""
    with transaction.atomic():
        NodeRequest.objects.filter(asked_at__lt=timezone.now() - KEPT).delete()
        return NodeRequest.objects.create(kind=kind, argument=argument).pk


def wait(*, pk: int, timeout_s: float, poll_s: float = 0.05) -> dict[str, Any] | None:
    """Return the answer, or None when none came in time; the request is gone afterwards either way."""
    deadline = time.monotonic() + timeout_s
    answer = None
    try:
        while answer is None and time.monotonic() < deadline:
            time.sleep(poll_s)
            answer = NodeRequest.objects.filter(pk=pk).values_list("answer", flat=True).first()
    finally:
        NodeRequest.objects.filter(pk=pk).delete()
    return answer


def waiting(*, kind: str) -> list[NodeRequest]:
    """Return requests nobody has taken yet and somebody may still wait for."""
    since = timezone.now() - timedelta(seconds=2 * PATIENCE_S)
    return list(NodeRequest.objects.filter(kind=kind, taken_at__isnull=True, asked_at__gt=since))


def peer_of(request: NodeRequest) -> NodeId | None:
    """Return the peer a request is about; None when the row does not say so in a way that can be read."""
    argument = request.argument
    text = argument.get("peer") if isinstance(argument, dict) else None
    try:
        return parse_node_id(text) if isinstance(text, str) else None
    except EncodingError:
        return None


def take(*, pk: int) -> bool:
    """Return True when the request is now this process's to answer."""
    return NodeRequest.objects.filter(pk=pk, taken_at__isnull=True).update(taken_at=timezone.now()) == 1


def answer(*, pk: int, answer: dict[str, Any]) -> None:
    NodeRequest.objects.filter(pk=pk).update(answer=answer, answered_at=timezone.now())
