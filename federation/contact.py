"""One handshake with whoever answers at a URL, outside any link: how `addpeer` meets a node.

The dialler checks who is there first. To a stranger it then shows itself and says goodbye (`pending`), so that both
operators find the other one waiting. Somebody already decided about is not shown anything: a second link would take
the place of the one that the running node may have.

Source: docs/protocol.md, sections 4 and 5.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from federation.cipher import SodiumSuite
from federation.conf import limits
from federation.dialer import DialError, open_websocket
from federation.protocol import codec, messages
from federation.protocol.errors import Goodbye, RemoteProtocolError
from federation.protocol.handshake import CipherError, ClientHandshake, Local
from federation.protocol.manifest import SignedManifest
from federation.protocol.session import SILENT_CLOSE


async def meet(url: str, local: Local, *, is_stranger: Callable[[SignedManifest], Awaitable[bool]]) -> SignedManifest:
    """Return the proven manifest of the node at `url`.

    Args:
        is_stranger: Asked once the other node is proven; when it says so, this node shows itself.

    Raises:
        DialError: nobody there, no node of this network, or this node itself.
    """
    bounds = limits()
    connection = await open_websocket(url, bounds)
    # Whoever fails to prove itself is told nothing, not even that it was nearly a peer.
    close_code = SILENT_CLOSE
    try:
        handshake = ClientHandshake(local, SodiumSuite(), secrets.token_bytes(32), None)
        async with asyncio.timeout(bounds.handshake_s):
            signed = await _prove(connection, handshake)
        close_code = Goodbye.PENDING.close_code
        if await is_stranger(signed):
            await connection.send(handshake.auth())
            goodbye = codec.encode(messages.Bye(code=Goodbye.PENDING, reason="the operators have not decided yet"))
            await connection.send(handshake.secured().sealer.seal(goodbye, final=True))
            await _until_closed(connection)
        return signed
    except TimeoutError:
        raise DialError("the handshake took too long") from None
    except (RemoteProtocolError, CipherError, ConnectionClosed):
        raise DialError("what answers there is no node of this network, or this node itself") from None
    finally:
        await connection.close(close_code)


async def _prove(connection: ClientConnection, handshake: ClientHandshake) -> SignedManifest:
    await connection.send(handshake.hello())
    while True:
        frame = await connection.recv()
        if isinstance(frame, str):
            raise DialError("what answers there does not speak the sync protocol")
        proven = handshake.receive(frame)
        if proven is not None:
            return proven.manifest


async def _until_closed(connection: ClientConnection) -> None:
    """Wait for the other side to have read the goodbye: its closing says so."""
    try:
        async with asyncio.timeout(2):
            await connection.wait_closed()
    except TimeoutError:
        pass  # closed from here then
