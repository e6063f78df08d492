"""What a TCP connection to the sync port costs before it is a WebSocket: a bounded place, for a bounded time.

Daphne caps no connections and lets a dripped header or body stay open for minutes, so the gate stands between
the socket and Daphne. A connection that has not become a WebSocket in `UPGRADE_S`, or sends more or other bytes than
a request needs, is cut. An address has so many such places; when all are taken, the oldest of the fullest address gives way.
From the upgrade on the consumer keeps the same rules for links that have not proven a key (federation/consumers.py).

Source: docs/protocol.md, section 5.
"""

import time
from collections import Counter
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from federation.protocol.limits import Limits

UPGRADE_S = 5.0  # from the connection to the accepted upgrade; the handshake has its own time after that
REQUEST_BYTES = 16 * 1024  # of request line and headers; a body has no business here


class GuardedConnection(ProtocolWrapper):  # type: ignore[type-arg]
    """One connection; `opened_at` is monotonic seconds."""

    def __init__(self, factory: "Gate", wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self.opened_at = time.monotonic()
        self.host = ""
        self._is_cut = False
        self._received = 0
        self._deadline: Any = None

    @property
    def is_waiting(self) -> bool:
        """True until the WebSocket is open; not of one that was cut, which is gone a turn of the loop later."""
        if self._is_cut:
            return False
        protocol = self.wrappedProtocol
        return not (isinstance(protocol, WebSocketServerProtocol) and protocol.state == protocol.STATE_OPEN)

    def makeConnection(self, transport: Any) -> None:
        self.host = str(getattr(transport.getPeer(), "host", ""))
        self._deadline = transport.reactor.callLater(self.factory.upgrade_s, self._late)
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        if self.is_waiting:
            self._received += len(data)
            # Daphne answers letters beyond ASCII in a request with a traceback in the log; no node sends any.
            if self._received > REQUEST_BYTES or not data.isascii():
                self.cut()
                return
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)

    def cut(self) -> None:
        self._is_cut = True
        if self.transport is not None:
            self.transport.abortConnection()

    def _late(self) -> None:
        if self.is_waiting:
            self.cut()


class Gate(WrappingFactory[GuardedConnection]):
    """Stands before the factory of one listening port."""

    protocol = GuardedConnection
    noisy = False

    def __init__(self, guarded: Any, limits: Limits) -> None:
        super().__init__(guarded)
        self._limits = limits
        self.upgrade_s = min(UPGRADE_S, limits.handshake_s)

    def buildProtocol(self, addr: Any) -> Any:
        """Return a guarded connection, or None, which makes Twisted close it."""
        waiting = [connection for connection in self.protocols if connection.is_waiting]
        by_host = Counter(connection.host for connection in waiting)
        if by_host[str(getattr(addr, "host", ""))] >= self._limits.half_open_per_address:
            return None
        if len(waiting) >= self._limits.half_open:
            fullest = max(by_host, key=lambda host: by_host[host])
            next(connection for connection in waiting if connection.host == fullest).cut()
        return super().buildProtocol(addr)
