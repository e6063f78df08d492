"""Daphne inside this program: the same server, with its ports held and its failures heard.

The stock class loses its listening ports, so it cannot drain; it returns silently when a port is taken; and its
signal handling cancels every consumer at once, so peers would see no goodbye.

Importing this module installs Twisted's asyncio reactor: import it before anything else of Twisted.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from daphne.server import Server as DaphneServer
from twisted.internet import reactor as twisted_reactor
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from federation.conf import Bind
from federation.gate import Gate
from federation.protocol.limits import Limits

# Twisted declares its reactor as an interface that names few of its methods.
reactor = cast(Any, twisted_reactor)

HEARTBEAT_S = 20


class PortTakenError(Exception):
    """A port could not be bound."""

    def __init__(self, bind: str, reason: str) -> None:
        super().__init__(f"{bind}: {reason}")


def endpoint(bind: Bind) -> str:
    """Return Twisted's description of a TCP endpoint; colons in it are escaped."""
    host = bind.host.replace(":", r"\:")
    return f"tcp:port={bind.port}:interface={host}:backlog=128"


class Server(DaphneServer):  # type: ignore[misc]
    """Serves an ASGI application on several binds until `stop_listening` and the reactor's end.

    Args:
        guarded_port: The one of them that strangers may reach and that serves nothing but WebSockets.
        ready: Called on the loop once every bind listens.
    """

    def __init__(
        self, application: Any, binds: Sequence[Bind], *, limits: Limits, guarded_port: int | None = None, ready: Callable[[], None]
    ) -> None:
        super().__init__(
            application,
            endpoints=[endpoint(bind) for bind in binds],
            signal_handlers=False,
            server_name="arklattice",
            websocket_timeout=-1,
            websocket_handshake_timeout=5,
            websocket_max_message_size=limits.frame_bytes,
            websocket_max_frame_size=limits.frame_bytes,
            ping_interval=HEARTBEAT_S,
            application_close_timeout=10,
            verbosity=1,
        )
        self._ready = ready
        self._limits = limits
        self._guarded_port = guarded_port
        self._awaited = len(binds)
        self.ports: list[Any] = []
        self.failure: PortTakenError | None = None

    def listen_success(self, port: Any) -> None:
        super().listen_success(port)
        if port.getHost().port == self._guarded_port:
            port.factory = Gate(port.factory, self._limits)
        self.ports.append(port)
        if len(self.ports) == self._awaited:
            reactor.callWhenRunning(self._ready)

    def listen_error(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, CannotListenError):
            self.failure = PortTakenError(f"{error.interface}:{error.port}", str(error.socketError))
        else:
            self.failure = PortTakenError("listening", str(error))
        self.stop()

    def kill_all_applications(self) -> Any:
        # The stock method looks up an application even for connections that have none and fails on them.
        with_application = {protocol: held for protocol, held in self.connections.items() if "application_instance" in held}
        self.connections: dict[Any, Any] = with_application
        return super().kill_all_applications()

    def stop_listening(self) -> None:
        """Take no new connections; those that stand go on."""
        for port in self.ports:
            port.stopListening()
