"""The node of this process: set by the runner, or made by the first inbound link under plain `daphne`."""

import asyncio
import logging

from django.db import DatabaseError

from federation.node import FederationNode, load_node
from keys.folder import KeyFileError

logger = logging.getLogger(__name__)


class NodeUnavailableError(Exception):
    """This process has no node and cannot make one; the log says why."""


_node: FederationNode | None = None
_starting: asyncio.Lock | None = None


def set_node(node: FederationNode | None) -> None:
    """Make this the node that inbound links meet."""
    global _node
    _node = node


async def running_node() -> FederationNode:
    """Return the node of this process, started.

    Raises:
        NodeUnavailableError: no key, or no usable database.
    """
    global _node, _starting
    if _node is not None:
        return _node
    _starting = _starting or asyncio.Lock()
    async with _starting:
        if _node is None:
            try:
                node = await asyncio.to_thread(load_node)
                await node.start()
            except (KeyFileError, DatabaseError) as error:
                logger.error("inbound links are refused: %s", error)
                raise NodeUnavailableError(str(error)) from error
            _node = node
    return _node
