"""A machine in the middle on the wire: a TCP relay between a dialler and a real node, unchanged and changed.

The dialler runs the same core as a node does (federation/contact.py) inside the test; thirty more manipulations
are tested in memory (tests/protocol/test_mitm.py).
"""

import asyncio
import contextlib
import time

import pytest

from federation.contact import meet
from federation.dialer import DialError
from federation.protocol import limits
from tests.identities import make_local, make_pair

CLIENT = make_local(1)
NETWORK_S = limits.Limits().handshake_s

DIALLER, LISTENER = "to the listener", "to the dialler"


class Relay:
    """Relays one WebSocket connection after the other, frame by frame, and remembers what passed.

    `change(direction, number, payload)` may return another payload, for the unmasked bytes of a frame.
    """

    def __init__(self, port, change=lambda direction, number, payload: payload):
        self.port, self.change = port, change
        self.passed = {DIALLER: [], LISTENER: []}
        self.codes = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc):
        self._server.close()

    async def _relay(self, reader, writer):
        out_reader, out_writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(NETWORK_S + 5):
                await asyncio.gather(self._pass(DIALLER, reader, out_writer), self._pass(LISTENER, out_reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # one side closed
        finally:
            for end in (writer, out_writer):
                end.close()

    async def _pass(self, direction, reader, writer):
        writer.write(await reader.readuntil(b"\r\n\r\n"))
        number = 0
        try:
            while True:
                opcode, payload = await read_frame(reader)
                if opcode == 8:
                    self.codes.append((direction, int.from_bytes(payload[:2])))
                else:
                    self.passed[direction].append(payload)
                    payload = self.change(direction, number, payload)
                    number += 1
                writer.write(make_frame(opcode, payload, masked=direction is DIALLER))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def read_frame(reader):
    """Return opcode and unmasked payload of one unfragmented WebSocket frame (RFC 6455, section 5.2)."""
    first, second = await reader.readexactly(2)
    size = second & 127
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
    mask = await reader.readexactly(4) if second & 128 else bytes(4)
    payload = await reader.readexactly(size)
    return first & 15, bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def make_frame(opcode, payload, *, masked):
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65_536 else b"\x7f" + size.to_bytes(8)
    head = bytes([0x80 | opcode, length[0] | (128 if masked else 0)]) + length[1:]
    return head + (bytes(4) if masked else b"") + payload  # a mask of zeroes changes nothing


def flip(direction, number, place):
    """Return a change that flips one bit of one frame."""

    def change(of, at, payload):
        if (of, at) != (direction, number):
            return payload
        index = int(place * (len(payload) - 1))
        return payload[:index] + bytes([payload[index] ^ 1]) + payload[index + 1 :]

    return change


async def say_stranger(signed):
    return True


async def try_to_meet(url, local=CLIENT):
    """Return how long it took to learn that this is no link, and the reason."""
    began = time.monotonic()
    with pytest.raises(DialError) as refused:
        await meet(url, local, is_stranger=say_stranger)
    return time.monotonic() - began, str(refused.value)


def registered(node):
    return [row[0] for row in node.rows("SELECT node_id FROM peers_peer")]


def settled(node):
    """Fail if the node registered anybody, said too much in its log, or died."""
    assert registered(node) == []
    assert node.process.poll() is None
    assert "Traceback" not in node.log_text()


@pytest.fixture
def bob(nodes):
    bob = nodes("bob")
    bob.start()
    return bob


def test_unchanged_relay_is_a_mere_wire(bob):
    """Through a relay that changes nothing, each side proves the other."""

    async def scenario():
        async with Relay(bob.sync_port) as relay:
            signed = await meet(relay.url, CLIENT, is_stranger=say_stranger)
            return signed, relay

    signed, relay = asyncio.run(scenario())
    assert signed.node_id.hex() == bob.node_id
    assert registered(bob) == [CLIENT.node_id.hex()]
    assert len(relay.passed[LISTENER]) == 3, "two hellos' worth, and the farewell"
    clear = b"".join(relay.passed[DIALLER][1:] + relay.passed[LISTENER][1:])
    assert make_pair(1).public not in clear, "who is there is seen by nobody in the middle"
    assert bytes.fromhex(bob.public_key) not in clear


def test_every_changed_bit_ends_in_silence(bob):
    """A bit flipped in any handshake message, in either direction, leads to no link and to no answer that helps."""
    frames = [(DIALLER, 0), (LISTENER, 0), (LISTENER, 1), (DIALLER, 1)]

    async def scenario():
        for direction, number in frames:
            for place in (0, 0.5, 1):
                async with Relay(bob.sync_port, flip(direction, number, place)) as relay:
                    if (direction, number) == (DIALLER, 1):
                        # The dialler has shown itself by then, and learns of the failure from the closing alone.
                        await meet(relay.url, CLIENT, is_stranger=say_stranger)
                    else:
                        seconds, _ = await try_to_meet(relay.url)
                        assert seconds < NETWORK_S
                    said = [len(relay.passed[way]) for way in (DIALLER, LISTENER)]
                    assert said[1] <= 2, "the listener says nothing beyond its own proof"
                    if direction is LISTENER:
                        assert said[0] == 1, "the dialler shows nothing of itself"
                    await asyncio.sleep(0.05)
                    assert 4400 in [code for _, code in relay.codes], "closed without a reason"

    asyncio.run(scenario())
    settled(bob)


def test_recorded_connection_replayed_is_refused(bob):
    """Everything a dialler once sent, sent again byte for byte, proves nothing: the listener's part is new each time."""

    async def scenario():
        async with Relay(bob.sync_port) as relay:
            await meet(relay.url, CLIENT, is_stranger=say_stranger)
            recorded = relay.passed[DIALLER]
        async with upgraded(bob.sync_port) as (reader, writer):
            for payload in recorded:
                writer.write(make_frame(2, payload, masked=True))
            return await frames_until_closed(reader)

    payloads, code = asyncio.run(scenario())
    assert (len(payloads), code) == (2, 4400)
    assert "Traceback" not in bob.log_text()


def test_reflection_is_refused(bob):
    """A listener that gets its own messages back takes them for nobody's."""

    async def scenario():
        async with Relay(bob.sync_port) as relay:
            await meet(relay.url, make_local(2), is_stranger=never)
            hello = relay.passed[DIALLER][0]
        async with upgraded(bob.sync_port) as (reader, writer):
            writer.write(make_frame(2, hello, masked=True))
            for _ in range(2):
                _, payload = await read_frame(reader)
                writer.write(make_frame(2, payload, masked=True))
            return await frames_until_closed(reader)

    payloads, code = asyncio.run(scenario())
    assert (payloads, code) == ([], 4400)
    settled(bob)


def test_another_network_is_not_talked_to(bob):
    """A node of another network gets no answer but the closing."""

    async def scenario():
        async with Relay(bob.sync_port) as relay:
            seconds, _ = await try_to_meet(relay.url, make_local(1, network="elsewhere"))
            return seconds, relay

    seconds, relay = asyncio.run(scenario())
    assert seconds < NETWORK_S
    assert relay.passed[LISTENER] == []
    assert relay.codes[0] == (LISTENER, 4400)
    settled(bob)


def test_wrong_key_at_the_expected_address(nodes):
    """A node that dials a friend's address and finds somebody else shows itself to nobody, and says so."""
    ada, mallory = nodes("ada"), nodes("mallory")
    mallory.start()
    ada.manage("importkey", "Bob", make_pair(7).public.hex(), "--tier", "core", "--url", mallory.url)
    ada.start()
    deadline = time.monotonic() + NETWORK_S
    while not (noted := ada.rows("SELECT last_error FROM peers_peeraddress WHERE last_error != ''")):
        assert time.monotonic() < deadline, ada.log_tail()
        time.sleep(0.05)
    assert noted[0][0]
    assert not ada.linked_with()
    settled(mallory)


async def never(signed):
    return False


@contextlib.asynccontextmanager
async def upgraded(port):
    """Give the two ends of a connection that is a WebSocket to the sync port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [
        "GET /sync HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: arklattice.sync.v1",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    try:
        yield reader, writer
    finally:
        writer.close()


async def frames_until_closed(reader):
    """Return the payloads that still came, and the code of the close."""
    payloads = []
    async with asyncio.timeout(NETWORK_S):
        while True:
            opcode, payload = await read_frame(reader)
            if opcode == 8:
                return payloads, int.from_bytes(payload[:2])
            payloads.append(payload)
