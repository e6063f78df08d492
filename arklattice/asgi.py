"""Entry of every connection: the port it came in on decides what it may reach.

The HTTP port serves Django and no links; the sync port serves `/sync` and nothing else. A port that is neither
(the plain `daphne` command on a port of its own) serves HTTP only. The port is the socket's, not a header's.

Source: docs/protocol.md, section 10; docs/architecture.md, section 1.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "arklattice.settings")

from django.core.asgi import get_asgi_application

_django = get_asgi_application()

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402 - Django first
from django.urls import path  # noqa: E402

from federation.conf import http_bind, sync_bind  # noqa: E402
from federation.consumers import SyncConsumer  # noqa: E402

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class PortRouter:
    """Sends each connection to the application of the port it came in on."""

    def __init__(self, *, sync: Application, http: Application) -> None:
        self._sync = sync
        self._http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        port = (scope.get("server") or ("", None))[1]
        is_sync = port == sync_bind().port and port != http_bind().port
        # Daphne takes a root path from a header of any client; nothing here lives below one.
        await (self._sync if is_sync else self._http)({**scope, "root_path": ""}, receive, send)


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what a port does not serve: 404 to HTTP, a refused upgrade to WebSockets."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 4404})
        return
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"not found\n"})


class KnownPaths:
    """A URLRouter that answers 404 where it would raise."""

    def __init__(self, router: Application, paths: frozenset[str]) -> None:
        self._router = router
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._router if scope["path"] in self._paths else not_found)(scope, receive, send)


application = PortRouter(
    sync=ProtocolTypeRouter(
        {
            "http": not_found,
            "websocket": KnownPaths(URLRouter([path("sync", SyncConsumer.as_asgi())]), frozenset({"/sync"})),
        }
    ),
    http=ProtocolTypeRouter({"http": _django, "websocket": not_found}),
)
