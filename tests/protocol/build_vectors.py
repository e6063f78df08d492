"""Writes docs/vectors/messages.json and handshake.json: `python -m tests.protocol.build_vectors`.

Everything follows from fixed seeds, so that the files change only when the wire does; tests build them again and compare.
"""

import json
from enum import Enum
from pathlib import Path

import msgpack
import msgspec
from nacl import bindings

from federation.cipher import SodiumOpener, SodiumSealer, SodiumSuite
from federation.protocol import codec
from federation.protocol.errors import Code, Goodbye, RemoteProtocolError
from federation.protocol.handshake import (
    CLIENT_AUTH_LABEL,
    SERVER_AUTH_LABEL,
    ClientHandshake,
    ServerHandshake,
    transcript_hash,
)
from federation.protocol.messages import (
    Ack,
    Auth,
    Bye,
    GetManifest,
    Have,
    HelloClient,
    HelloServer,
    Interest,
    Manifest,
    Packets,
    Ping,
    Pong,
    Prefer,
    Preference,
    Query,
    Reconcile,
    Result,
    Role,
    Scope,
    Want,
    Welcome,
)
from tests.identities import make_local, make_pair

FOLDER = Path(__file__).parents[2] / "docs/vectors"

ORIGIN = bytes(range(16))
OTHER = bytes(range(16, 32))
ID = bytes(range(32))
OTHER_ID = bytes(range(32, 64))
SIGNATURE = bytes(range(64))
ROW = (b'{"v":1}', SIGNATURE, 1_760_000_000_000, OTHER_ID)
RAW = msgspec.Raw(msgpack.packb(ROW))
MAX = 2**53 - 1

VALID = [
    ("hello of a dialler", HelloClient([1], "arklattice", ID)),
    ("hello offering versions not known here", HelloClient([2, 1, 700], "réseau", ID)),
    ("hello of a listener", HelloServer(1, "arklattice", OTHER_ID)),
    ("auth", Auth((b"{}", SIGNATURE), bytes(64))),
    ("welcome", Welcome(True, True, False, (512, 1_048_576), 1_760_000_000_000, [])),
    ("welcome with the smallest window and extensions", Welcome(False, False, True, (256, 196_608), 0, [64, "compress"])),
    *((f"goodbye {code}", Bye(code, "")) for code in Goodbye),
    ("goodbye with a reason", Bye(Goodbye.PROTOCOL, "unknown message number 20")),
    ("interest in nothing", Interest([])),
    ("interest", Interest([(ORIGIN, 0), (OTHER, MAX)])),
    ("empty scope", Scope([])),
    ("scope", Scope([(ORIGIN, 40_000, OTHER, ID), (OTHER, 0, bytes(16), OTHER_ID)])),
    ("get manifest", GetManifest(ORIGIN)),
    ("manifest", Manifest(ORIGIN, (b"{}", SIGNATURE))),
    ("no manifest", Manifest(ORIGIN, None)),
    ("reconcile request", Reconcile(ORIGIN, Role.REQUEST, b"\x61\x00\x00\x02\x00")),
    ("reconcile answer that only says the version", Reconcile(ORIGIN, Role.ANSWER, b"\x61")),
    ("want nothing", Want([])),
    ("want", Want([ID, OTHER_ID])),
    ("packets", Packets(0, [RAW], [])),
    ("packets, nothing but gone", Packets(70_000, [], [ID])),
    ("packets with a malformed row", Packets(1, [RAW, msgspec.Raw(msgpack.packb([1, 2])), RAW], [ID, OTHER_ID])),
    ("packets with a row in a longer encoding", Packets(1, [msgspec.Raw(b"\x91\xcc\x01")], [])),
    ("ack of an empty batch", Ack(128, [])),
    ("ack with every code", Ack(255, list(Code))),
    ("have", Have([(ORIGIN, ID), (ORIGIN, OTHER_ID)])),
    ("prefer push", Prefer(Preference.PUSH)),
    ("prefer announce", Prefer(Preference.ANNOUNCE)),
    ("query for everything", Query(0, None, None, None, None, None, None, None, None)),
    ("query with every field", Query(3, "réseau", ["note"], ["a", "b"], ORIGIN, 0, MAX, 100, "next")),
    ("result", Result(3, "ok", [RAW], "next")),
    ("result that refuses", Result(3, "quota", [], None)),
    ("ping", Ping(65_535)),
    ("pong", Pong(65_536, 2**32)),
]

ROWS = [
    ("row", RAW),
    ("empty body", msgspec.Raw(msgpack.packb((b"", SIGNATURE, 0, ID)))),
    ("no array", msgspec.Raw(b"\xc0")),
    ("too short", msgspec.Raw(msgpack.packb(ROW[:3]))),
    ("too long", msgspec.Raw(msgpack.packb((*ROW, None)))),
    ("body as text", msgspec.Raw(msgpack.packb(("{}", *ROW[1:])))),
    ("signature of 63 bytes", msgspec.Raw(msgpack.packb((b"{}", SIGNATURE[:63], *ROW[2:])))),
    ("key fingerprint of 33 bytes", msgspec.Raw(msgpack.packb((*ROW[:3], ID + b"!")))),
    ("negative timestamp", msgspec.Raw(msgpack.packb((*ROW[:2], -1, ID)))),
    ("timestamp beyond 2^53-1", msgspec.Raw(msgpack.packb((*ROW[:2], MAX + 1, ID)))),
    ("timestamp as a float", msgspec.Raw(msgpack.packb((*ROW[:2], 1.0, ID)))),
    ("timestamp as a boolean", msgspec.Raw(msgpack.packb((*ROW[:2], True, ID)))),
    ("longer encoding of the timestamp", msgspec.Raw(msgpack.packb(ROW).replace(b"\xcf", b"\xd3"))),
    ("longer encoding of the array", msgspec.Raw(b"\xdc\x00\x04" + msgpack.packb(ROW)[1:])),
]


def p(*fields):
    return msgpack.packb(fields)


IGNORED = [
    ("the first extension", p(64)),
    ("an extension with anything in it", p(65, {"a": [1.5, None, {b"x": msgpack.ExtType(5, b"y")}]}, -1)),
    ("an extension with what would be a longer encoding", b"\x92\x40\xcd\x00\x01"),
    ("the highest number", p(MAX)),
    ("sixteen items", p(128, *range(15))),
]

INVALID = [
    ("nothing", b""),
    ("no array: map", b"\x80"),
    ("no array: nil", b"\xc0"),
    ("the byte that never occurs", b"\xc1"),
    ("an empty array", b"\x90"),
    ("number 0", p(0)),
    ("number 20", p(20)),
    ("number 63", p(63)),
    ("number -1", p(-1)),
    ("number 2^53", p(2**53)),
    ("number as text", p("18", 1)),
    ("number as a float", p(18.0, 1)),
    ("number as a boolean", p(True, [1], "arklattice", ID)),
    ("number in a longer encoding", b"\x92\xcc\x12\x01"),
    ("extension number in a longer encoding", b"\x91\xcc\x40"),
    ("extension in a longer array", b"\xdc\x00\x01\x40"),
    ("extension cut short", b"\x92\x40"),
    ("extension with bytes after it", b"\x91\x40\x00"),
    ("array in a longer encoding", b"\xdc\x00\x02\x12\x01"),
    ("array in the longest encoding", b"\xdd\x00\x00\x00\x02\x12\x01"),
    ("integer in a longer encoding", b"\x92\x12\xcc\x01"),
    ("positive integer in a signed encoding of the same length", b"\x92\x12\xd1\x75\x30"),
    ("text in a longer encoding", b"\x92\x0f\xd9\x04push"),
    ("bytes in a longer encoding", b"\x92\x08\xc5\x00\x10" + ORIGIN),
    ("bytes after the message", p(18, 1) + b"\x00"),
    ("two messages", p(18, 1) * 2),
    ("cut short", p(18, 65_536)[:-1]),
    ("a field too few", p(18)),
    ("a field too many", p(18, 1, 1)),
    ("hello without versions", p(1, [], "arklattice", ID)),
    ("hello with 17 versions", p(1, list(range(17)), "arklattice", ID)),
    ("hello with a key of 31 bytes", p(1, [1], "arklattice", ID[:31])),
    ("hello with a key of 33 bytes", p(1, [1], "arklattice", ID + b"!")),
    ("hello without a network", p(1, [1], "", ID)),
    ("hello with a network of 65 characters", p(1, [1], "x" * 65, ID)),
    ("hello with text that is not UTF-8", b"\x94\x01\x91\x01\xa1\xff\xc4\x20" + ID),
    ("auth with a signature of 63 bytes", p(3, [b"{}", SIGNATURE], SIGNATURE[:63])),
    ("auth with nil for a manifest", p(3, None, SIGNATURE)),
    ("welcome with a window of 255 packets", p(4, True, True, True, [255, 196_608], 0, [])),
    ("welcome with a window below 192 KiB", p(4, True, True, True, [256, 196_607], 0, [])),
    ("welcome with 1 for true", p(4, 1, True, True, [256, 196_608], 0, [])),
    ("welcome without extensions", p(4, True, True, True, [256, 196_608], 0)),
    ("welcome with nil for an extension", p(4, True, True, True, [256, 196_608], 0, [None])),
    ("longer welcome cut short", p(4, True, True, True, [256, 196_608], 0, [], 1)[:-1]),
    ("longer welcome in a longer encoding", b"\xdc\x00\x08" + p(4, True, True, True, [256, 196_608], 0, [], 1)[1:]),
    ("goodbye with an unknown code", p(5, "because", "")),
    ("goodbye with a reason of 257 characters", p(5, "bye", "x" * 257)),
    ("interest with an origin of 15 bytes", p(6, [[ORIGIN[:15], 0]])),
    ("interest with an origin as text", p(6, [["0" * 16, 0]])),
    ("interest with a negative count", p(6, [[ORIGIN, -1]])),
    ("interest with a count of 2^53", p(6, [[ORIGIN, 2**53]])),
    ("interest with an origin twice", p(6, [[ORIGIN, 1], [OTHER, 1], [ORIGIN, 2]])),
    ("interest with a row too long", p(6, [[ORIGIN, 1, 1]])),
    ("scope with an origin twice", p(7, [[ORIGIN, 1, ORIGIN, ID], [ORIGIN, 2, ORIGIN, ID]])),
    ("scope with a fingerprint of 32 bytes", p(7, [[ORIGIN, 1, ID, ID]])),
    ("get manifest of nil", p(8, None)),
    ("manifest with false for none", p(9, ORIGIN, False)),
    ("reconcile with role 2", p(10, ORIGIN, 2, b"\x61")),
    ("reconcile with role true", p(10, ORIGIN, True, b"\x61")),
    ("reconcile with nil for a frame", p(10, ORIGIN, 0, None)),
    ("want with an id of 31 bytes", p(11, [ID[:31]])),
    ("want that declares 2^32-1 ids", b"\x92\x0b\xdd\xff\xff\xff\xff"),
    ("reconcile that declares a frame of 2^32-1 bytes", b"\x94\x0a\xc4\x10" + ORIGIN + b"\x00\xc6\xff\xff\xff\xff\x61"),
    ("packets that declare 2^32-1 rows", b"\x94\x0c\x00\xdd\xff\xff\xff\xff"),
    ("packets with a row cut short", b"\x94\x0c\x00\x91\x94"),
    ("packets with the byte that never occurs for a row", b"\x94\x0c\x00\x91\xc1\x90"),
    ("packets with rows in a longer array", b"\x94\x0c\x00\xdc\x00\x01\xc0\x90"),
    ("packets with nil for rows", p(12, 0, None, [])),
    ("packets with a gone id of 16 bytes", p(12, 0, [], [ORIGIN])),
    ("ack with an unknown code", p(13, 0, ["accepted", "maybe"])),
    ("ack with a number for a code", p(13, 0, [1])),
    ("have with a row too short", p(14, [[ORIGIN]])),
    ("prefer nothing", p(15, "nothing")),
    ("query with a limit of 0", p(16, 0, None, None, None, None, None, None, 0, None)),
    ("query with a limit of 101", p(16, 0, None, None, None, None, None, None, 101, None)),
    ("query with 33 tags", p(16, 0, None, None, ["t"] * 33, None, None, None, None, None)),
    ("query without a cursor", p(16, 0, None, None, None, None, None, None, None)),
    ("result with an unknown code", p(17, 0, "fine", [], None)),
    ("result with a code of Ack that refuses nothing", p(17, 0, "accepted", [], None)),
    ("result with a malformed envelope", p(17, 0, "ok", [[1, 2]], None)),
    ("ping with a clock that is a float", p(18, 1.0)),
    ("ping with a clock that is a timestamp extension", b"\x92\x12\xd6\xff\x00\x00\x00\x01"),
    ("ping with a clock of true", p(18, True)),
    ("ping with a clock of 2^64-1", p(18, 2**64 - 1)),
]


def build_messages():
    return {
        "about": "Messages of a link, docs/protocol.md section 5. Bytes are hex. `valid`: message, fields and its one "
        "encoding. `ignored`: extensions, to be skipped. `invalid`: frames that end the link, with the Goodbye code. `rows`: rows "
        "of Packets; null where the row is only Acked malformed.",
        "valid": [
            {
                "name": name,
                "message": "Goodbye" if isinstance(message, Bye) else type(message).__name__,
                "fields": {field: plain(getattr(message, field)) for field in message.__struct_fields__},
                "hex": codec.encode(message).hex(),
            }
            for name, message in VALID
        ],
        "ignored": [{"name": name, "hex": data.hex()} for name, data in IGNORED],
        "invalid": [{"name": name, "hex": data.hex(), "error": error_of(data)} for name, data in INVALID],
        "rows": [{"name": name, "hex": bytes(raw).hex(), "envelope": envelope_of(raw)} for name, raw in ROWS],
    }


def plain(value):
    """Return a field as JSON can say it."""
    match value:
        case bytes() | msgspec.Raw():
            return bytes(value).hex()
        case Enum():
            return value.value
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def error_of(data):
    try:
        codec.decode(data)
    except RemoteProtocolError as error:
        return error.goodbye.value
    raise AssertionError(f"{data.hex()} was taken")


def envelope_of(raw):
    envelope = codec.decode_row(raw)
    if envelope is None:
        return None
    return [envelope.body.hex(), envelope.signature.hex(), envelope.timestamp, envelope.key_fingerprint.hex()]


CLIENT_NODE, SERVER_NODE, STRANGER = 1, 2, 3
CLIENT_SEED, SERVER_SEED = b"c" * 32, b"s" * 32
CLIENT_HEADER, SERVER_HEADER = b"C" * 24, b"S" * 24


class FixedSealer(SodiumSealer):
    """The real sealer with a chosen header, which libsodium would draw: both ends of a stream start in the same state."""

    def __init__(self, key, header):
        super().__init__(key)
        self._header = header
        bindings.crypto_secretstream_xchacha20poly1305_init_pull(self._state, header, key)


class FixedSuite(SodiumSuite):
    def __init__(self, header):
        self.header = header
        self.keys = {}

    def sealer(self, key):
        self.keys["tx"] = key.hex()
        return FixedSealer(key, self.header)

    def opener(self, key):
        self.keys["rx"] = key.hex()
        return SodiumOpener(key)


def run_handshake(client, server):
    """Return the five frames of a handshake, the last one's answer left out: both hellos, both Auths."""
    hello_client = client.hello()
    hello_server, server_auth = server.receive(hello_client)
    client.receive(hello_server)
    client.receive(server_auth)
    client_auth = client.auth()
    server.receive(client_auth)
    return hello_client, hello_server, server_auth, client_auth


def build_handshake():
    local_client, local_server = make_local(CLIENT_NODE), make_local(SERVER_NODE)
    client_suite, server_suite = FixedSuite(CLIENT_HEADER), FixedSuite(SERVER_HEADER)
    client = ClientHandshake(local_client, client_suite, CLIENT_SEED, local_server.node_id)
    server = ServerHandshake(local_server, server_suite, SERVER_SEED)
    hello_client, hello_server, server_frame, client_frame = run_handshake(client, server)
    server_auth, _ = SodiumOpener(bytes.fromhex(client_suite.keys["rx"])).open(server_frame)
    client_auth, _ = SodiumOpener(bytes.fromhex(server_suite.keys["rx"])).open(client_frame)
    welcome = codec.encode(Welcome(True, True, True, (512, 1_048_576), 1_760_000_000_000, []))
    goodbye = codec.encode(Bye(Goodbye.BYE, ""))
    sealer = client.secured().sealer
    return {
        "about": "One handshake, docs/protocol.md section 5, from fixed seeds. Bytes are hex, manifests their canonical text. "
        "Plaintext frames, transcript hashes T, signatures, crypto_kx session keys, and the frames as sent when each stream's "
        "header (which is random) is the one given. `invalid`: what one side receives, frame by frame, with the same seeds "
        "and headers (the dialler wants `server.node_id`); at the last frame it closes 4400 and says nothing.",
        "network": "arklattice",
        "client": side(local_client, CLIENT_NODE, CLIENT_SEED, CLIENT_HEADER, client_suite),
        "server": side(local_server, SERVER_NODE, SERVER_SEED, SERVER_HEADER, server_suite),
        "plaintext": {
            "hello_client": hello_client.hex(),
            "hello_server": hello_server.hex(),
            "server_auth": server_auth.hex(),
            "client_auth": client_auth.hex(),
        },
        "transcript": {
            "server": transcript_hash(hello_client, hello_server, local_server.manifest.body).hex(),
            "client": transcript_hash(hello_client, hello_server, server_auth, local_client.manifest.body).hex(),
        },
        "signed": {
            "server": "arklattice/auth/server/v1\n || transcript.server",
            "client": "arklattice/auth/client/v1\n || transcript.client",
        },
        "signatures": {
            "server": codec.decode(server_auth).signature.hex(),
            "client": codec.decode(client_auth).signature.hex(),
        },
        "frames": {
            "hello_client": hello_client.hex(),
            "hello_server": hello_server.hex(),
            "server_auth": server_frame.hex(),
            "client_auth": client_frame.hex(),
            "client_welcome": {"plaintext": welcome.hex(), "sealed": sealer.seal(welcome).hex()},
            "client_goodbye_final": {"plaintext": goodbye.hex(), "sealed": sealer.seal(goodbye, final=True).hex()},
        },
        "invalid": [
            {"name": name, "role": role, "receives": [frame.hex() for frame in frames], "error": "HandshakeError"}
            for name, role, frames in bad_handshakes(
                hello_client, hello_server, server_frame, client_frame, server_auth, client_auth
            )
        ],
    }


def side(local, number, seed, header, suite):
    return {
        "node_id": local.node_id.hex(),
        "identity_seed": number.to_bytes(32).hex(),
        "public_key": make_pair(number).public.hex(),
        "manifest": local.manifest.body.decode(),
        "manifest_signature": local.manifest.signature.hex(),
        "ephemeral_seed": seed.hex(),
        "ephemeral_public": suite.keypair(seed)[0].hex(),
        "stream_header": header.hex(),
        "rx": suite.keys["rx"],
        "tx": suite.keys["tx"],
    }


def bad_handshakes(hello_client, hello_server, server_frame, client_frame, server_auth, client_auth):
    """Yield (name, attacked role, frames it receives), each wrong in one way."""
    client_suite, server_suite = FixedSuite(CLIENT_HEADER), FixedSuite(SERVER_HEADER)
    client_public, client_secret = client_suite.keypair(CLIENT_SEED)
    server_public, _ = server_suite.keypair(SERVER_SEED)
    to_client, to_server = client_suite.client_keys(client_public, client_secret, server_public)

    def hello_c(versions=(1,), network="arklattice", key=client_public):
        return codec.encode(HelloClient(list(versions), network, key))

    def hello_s(version=1, network="arklattice", key=server_public):
        return codec.encode(HelloServer(version, network, key))

    def from_server(plaintext, **seal):
        return FixedSealer(to_client, SERVER_HEADER).seal(plaintext, **seal)

    def from_client(plaintext, **seal):
        return FixedSealer(to_server, CLIENT_HEADER).seal(plaintext, **seal)

    def auth(number, label, *transcript, network="arklattice"):
        local = make_local(number, network=network)
        signature = local.sign(label + transcript_hash(*transcript, local.manifest.body))
        return codec.encode(Auth((local.manifest.body, local.manifest.signature), signature))

    yield "no common version", "server", [hello_c(versions=[0, 2])]
    yield "another network", "server", [hello_c(network="other")]
    yield "low-order ephemeral key", "server", [hello_c(key=bytes(32))]
    yield "ephemeral key that is not canonical", "server", [hello_c(key=(2**255 - 19 + 9).to_bytes(32, "little"))]
    yield "the listener's own ephemeral key", "server", [hello_c(key=server_public)]
    yield "HelloServer in place of HelloClient", "server", [hello_server]
    yield "an extension before Auth", "server", [p(64)]
    yield "HelloClient in a longer encoding", "server", [b"\xdc\x00\x04" + hello_client[1:]]
    yield "HelloClient twice", "server", [hello_client, hello_client]
    yield "Auth in the clear", "server", [hello_client, client_auth]
    yield "Auth with a flipped bit", "server", [hello_client, client_frame[:-1] + bytes([client_frame[-1] ^ 1])]
    yield "Auth without its stream header", "server", [hello_client, client_frame[24:]]
    yield "Auth with the FINAL tag", "server", [hello_client, from_client(client_auth, final=True)]
    yield "the listener's Auth thrown back", "server", [hello_client, server_frame]
    yield "Welcome in place of Auth", "server", [hello_client, from_client(p(4, True, True, True, [512, 1_048_576], 0, []))]
    yield (
        "client's Auth under the server's label",
        "server",
        [hello_client, from_client(auth(CLIENT_NODE, SERVER_AUTH_LABEL, hello_client, hello_server, server_auth))],
    )
    yield (
        "client's Auth that does not cover the server's",
        "server",
        [hello_client, from_client(auth(CLIENT_NODE, CLIENT_AUTH_LABEL, hello_client, hello_server))],
    )
    yield (
        "client's Auth over another HelloClient",
        "server",
        [
            hello_client,
            from_client(auth(CLIENT_NODE, CLIENT_AUTH_LABEL, hello_c(versions=[1, 2]), hello_server, server_auth)),
        ],
    )
    yield (
        "a manifest of another network",
        "server",
        [
            hello_client,
            from_client(auth(CLIENT_NODE, CLIENT_AUTH_LABEL, hello_client, hello_server, server_auth, network="other")),
        ],
    )
    yield (
        "the listener's own identity",
        "server",
        [hello_client, from_client(auth(SERVER_NODE, CLIENT_AUTH_LABEL, hello_client, hello_server, server_auth))],
    )
    stolen = make_local(STRANGER).manifest
    yield (
        "somebody else's manifest",
        "server",
        [hello_client, from_client(codec.encode(Auth((stolen.body, stolen.signature), codec.decode(client_auth).signature)))],
    )
    yield "a version that was not offered", "client", [hello_s(version=2)]
    yield "another network", "client", [hello_s(network="other")]
    yield "low-order ephemeral key", "client", [hello_s(key=b"\x01" + bytes(31))]
    yield "HelloClient thrown back", "client", [hello_client]
    yield "the dialler's own ephemeral key", "client", [hello_s(key=client_public)]
    yield "HelloServer twice", "client", [hello_server, hello_server]
    yield "Goodbye in place of Auth", "client", [hello_server, from_server(codec.encode(Bye(Goodbye.BLOCKED, "")))]
    yield (
        "another node than the one dialled",
        "client",
        [hello_server, from_server(auth(STRANGER, SERVER_AUTH_LABEL, hello_client, hello_server))],
    )
    yield (
        "server's Auth under the client's label",
        "client",
        [hello_server, from_server(auth(SERVER_NODE, CLIENT_AUTH_LABEL, hello_client, hello_server))],
    )
    yield (
        "server's Auth over another HelloServer",
        "client",
        [hello_server, from_server(auth(SERVER_NODE, SERVER_AUTH_LABEL, hello_client, hello_s(key=client_public)))],
    )
    yield (
        "the dialler's own identity",
        "client",
        [hello_server, from_server(auth(CLIENT_NODE, SERVER_AUTH_LABEL, hello_client, hello_server))],
    )
    yield "a frame after the server's Auth", "client", [hello_server, server_frame, server_frame]


def text(vectors):
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (FOLDER / "messages.json").write_text(text(build_messages()), encoding="utf-8")
    (FOLDER / "handshake.json").write_text(text(build_handshake()), encoding="utf-8")
