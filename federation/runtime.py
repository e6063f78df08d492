"""The node of this process: set by the runner, or made by the first inbound link under plain `daphne`."""

import asyncio
import logging
import sys
import time
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError

from federation.node import FederationNode, load_node
from keys.folder import KeyFileError

logger = logging.getLogger(__name__)

# A node that could not be made is not tried again sooner: strangers' connections are what asks for it.
RETRY_S = 2.0


class NodeUnavailableError(Exception):
    """This process has no node and cannot make one; the log says why."""


_node: FederationNode | None = None
_starting: "asyncio.Task[FederationNode] | None" = None
_failed_at: float | None = None


def set_node(node: FederationNode | None) -> None:
    """Make this the node that inbound links meet."""
    global _node, _starting, _failed_at
    _node, _starting, _failed_at = node, None, None


async def running_node() -> FederationNode:
    """Return the node of this process, started.

    Raises:
        NodeUnavailableError: no key, no usable database, or a setting that cannot be.
    """
    global _starting, _failed_at
    if _node is not None:
        return _node
    if _failed_at is not None and time.monotonic() - _failed_at < RETRY_S:
        raise NodeUnavailableError("it could not be made a moment ago")
    if _starting is None:
        _starting = asyncio.create_task(_make_node())
    try:
        # Shielded: who asked first may leave before the node is there, and others wait for it too.
        return await asyncio.shield(_starting)
    except (KeyFileError, DatabaseError, ImproperlyConfigured) as error:
        if _failed_at is None or time.monotonic() - _failed_at >= RETRY_S:
            logger.error("inbound links are refused: %s", error)
        _starting, _failed_at = None, time.monotonic()
        raise NodeUnavailableError(str(error)) from error


async def _make_node() -> FederationNode:
    node = await asyncio.to_thread(load_node)
    await node.start()
    _stop_with_the_server(node)
    set_node(node)
    return node


def _stop_with_the_server(node: FederationNode) -> None:
    """Let a Twisted server wait for the node's goodbyes before it ends; other servers just end."""
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if reactor is None or getattr(reactor, "_asyncioEventloop", None) is not asyncio.get_running_loop():
        return
    from twisted.internet.defer import Deferred

    async def end() -> None:
        await node.stop()
        await node.close()

    def stop() -> Any:
        return Deferred.fromFuture(asyncio.ensure_future(end()))

    reactor.addSystemEventTrigger("before", "shutdown", stop)
