"""Whatever is typed or sent, the answer is a refusal with its reason: no traceback, nothing half written."""

import json
import os
import random
import socket

import pytest

from tests.harness import introduce, linked, listening, together, wait_for

KEY = "ab" * 32
MISSING = "0" * 64


# What is typed, and the exit status that answers it.
MISTAKES = [
    (["trusttier", "nobody", "core"], 4),
    (["trusttier", "nobody", "friend"], 2),
    (["blockpeer", "nobody"], 4),
    (["removepeer", "nobody"], 4),
    (["syncnow", "nobody"], 4),
    (["importkey", "Bob", "xyz"], 2),
    (["importkey", "Bob", KEY[:-1]], 2),
    (["importkey", "Bob", KEY.upper()], 2),
    (["importkey", "Bob", "ark1AAAA"], 2),
    (["importkey", "Bob", KEY, "--tier", "friend"], 2),
    (["addpeer", "http://127.0.0.1:1"], 2),
    (["addpeer", "ws://"], 2),
    (["addpeer", "ws://127.0.0.1:1"], 1),
    (["showpacket", MISSING], 4),
    (["why", MISSING], 4),
    (["showpacket", "not-hex"], 2),
    (["publish"], 2),
    (["publish", "/no/such/file"], 1),
    (["publish", "--text", "x", "--kind", "Not A Kind"], 2),
    (["publish", "--text", "x", "--confidence", "2"], 2),
    (["publish", "--text", "x", "--audience", "everyone"], 2),
    (["packets", "--limit", "minus one"], 2),
    (["packets", "--since", "yesterday-ish"], 2),
    (["verifyenvelope", "/no/such/file"], 1),
    (["autosync", "perhaps"], 2),
    (["runfederation", "--no-such-option"], 2),
]


@pytest.fixture
def node(nodes):
    return nodes("ada")


@pytest.mark.parametrize(("words", "status"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistake_has_its_status_and_one_clear_line(node, words, status):
    """Each mistake ends with its exit status, a reason on standard error, nothing on standard output, and no row."""
    tables = ["federation_knowledgepacket", "peers_peer", "peers_peerkey", "peers_peeraddress", "peers_tierchange"]
    before = [node.rows(f"SELECT count(*) FROM {table}") for table in tables]  # noqa: S608 -- constant names
    done = node.manage(*words, status=status)
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert [node.rows(f"SELECT count(*) FROM {table}") for table in tables] == before  # noqa: S608 -- as above


def test_elevation_without_a_key_is_refused_by_policy(nodes):
    """CORE and SANDBOX need a key this operator imported: status 5, the tier stays."""
    ada, bob = together(lambda: nodes("ada"), lambda: nodes("bob"))
    bob.start()
    ada.manage("addpeer", bob.url, "--name", "Bob")
    for tier in ["core", "sandbox"]:
        done = ada.manage("trusttier", "Bob", tier, status=5)
        assert "key" in done.stderr
    assert ada.ask("peers")[0]["tier"] == "unknown"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 6),
        ("not json", 6),
        ("{}", 6),
        ('{"packet": {}, "signature": "", "timestamp": 0, "key": ""}', 6),
        ("\udcff", 6),
        ("[" * 10_000, 6),
    ],
    ids=["empty", "no json", "no fields", "empty fields", "bad utf-8", "deep"],
)
def test_junk_is_no_envelope(node, text, status):
    """`verifyenvelope` answers junk with status 6 and a reason."""
    done = node.manage("verifyenvelope", "-", stdin=text.encode("utf-8", "surrogateescape"), status=status)
    assert done.stderr.strip()


def test_changed_envelope_is_refused(node):
    """One changed character anywhere in an envelope fails verification; unchanged it passes, on any node."""
    packet_id = node.publish("signed")
    envelope = node.manage("showpacket", packet_id, "--envelope").stdout
    node.manage("verifyenvelope", "-", stdin=envelope)
    document = json.loads(envelope)
    changes = [
        lambda d: d["packet"].update(content="signee"),
        lambda d: d["packet"].update(created_at=d["packet"]["created_at"] + 1),
        lambda d: d.update(timestamp=d["timestamp"] + 1),
        lambda d: d.update(signature="0" * 128),
        lambda d: d.update(key="0" * 64),
    ]
    for change in changes:
        changed = json.loads(envelope)
        change(changed)
        assert changed != document
        node.manage("verifyenvelope", "-", stdin=json.dumps(changed), status=6)


def test_bad_line_is_named_and_the_good_ones_before_it_stay(node):
    """`--ndjson` stops at a bad line, names its number, and keeps what was published before it."""
    done = node.manage("publish", "-", "--ndjson", stdin='{"n": 1}\n{"n": 2}\n{"n": \n{"n": 4}\n', status=None)
    assert done.status in {1, 2}
    assert "line 3" in done.stderr
    assert node.count() == 2


def test_atomic_publishes_all_or_none(node):
    """With `--atomic` a bad line leaves nothing behind."""
    done = node.manage("publish", "-", "--ndjson", "--atomic", stdin='{"n": 1}\n{"n": 2}\n{"n": \n', status=None)
    assert done.status in {1, 2}
    assert "line 3" in done.stderr
    assert node.count() == 0


def test_size_limit_at_it_and_one_beyond(node):
    """A packet of 65,536 canonical bytes is published, one byte more is refused with `too-large`."""
    packet_id = node.publish("x")
    overhead = len(node.body(packet_id)) - 1
    for extra, status in [(0, 0), (1, None)]:
        path = node.home / "big.txt"
        path.write_text("x" * (65_536 - overhead + extra))
        done = node.manage("publish", "--text", path.read_text(), status=status)
        if extra:
            assert done.status in {1, 2}
            assert "65" in done.stderr
    lengths = [length for (length,) in node.rows("SELECT length(body) FROM federation_knowledgepacket ORDER BY arrival")]
    assert lengths == [overhead + 1, 65_536]


def junk(seed):
    """Yield byte strings a stranger may send: noise, half requests, other protocols, whole and broken frames."""
    source = random.Random(seed)
    request = b"GET /sync HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: arklattice.sync.v1\r\n\r\n"
    yield b""
    yield b"\x00" * 1_000
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    yield b"SSH-2.0-OpenSSH_9.2\r\n"
    yield b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 70_000
    yield b"GET /" + b"%00" * 50 + b" HTTP/1.1\r\n\r\n"
    yield request
    yield request + key
    for length in (0, 1, 40, 125, 126, 5_000, 70_000):
        yield request + key + frame(source.randbytes(length), source)
    yield request + key + b"\x82\xff" + (2**62).to_bytes(8, "big") + b"\0\0\0\0"
    yield request + key + b"\x81\x85" + source.randbytes(9)
    for _ in range(10):
        yield source.randbytes(source.randrange(1, 3_000))


def frame(payload, source):
    """Return a masked binary WebSocket frame."""
    mask = source.randbytes(4)
    length = len(payload)
    if length < 126:
        head = bytes([0x82, 0x80 | length])
    elif length < 65_536:
        head = b"\x82\xfe" + length.to_bytes(2, "big")
    else:
        head = b"\x82\xff" + length.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def test_junk_on_every_port_changes_nothing(nodes):
    """Noise on the HTTP, sync and discovery ports: the node serves on, its link stands, its log shows no traceback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        udp = probe.getsockname()[1]
    settings = {"ARK_DISCOVERY": "true", "ARK_DISCOVERY_INTERFACES": "127.0.0.1", "ARK_DISCOVERY_PORT": str(udp)}
    ada, bob = together(lambda: nodes("ada", **settings), lambda: nodes("bob"))
    introduce(ada, bob)
    together(ada.start, bob.start)
    wait_for(lambda: linked(ada, bob), 10)
    for seed in range(3):
        for data in junk(seed):
            for port in (ada.sync_port, ada.http_port):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    try:
                        connection.sendall(data)
                        connection.settimeout(0.02)
                        connection.recv(1_000)
                    except OSError:
                        pass
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(data[:1_400], ("127.0.0.1", udp))
                sender.sendto(json.dumps({"type": "beacon", "peer_id": os.urandom(8).hex()}).encode(), ("127.0.0.1", udp))
    assert linked(ada, bob)
    packet_id = ada.publish("still here")
    wait_for(lambda: bob.holds(packet_id), 3, "still live")
    assert listening(ada.http_port)
    assert ada.rows("SELECT count(*) FROM peers_peer") == [(1,)]
    assert "Traceback" not in ada.log_text(), ada.log_tail()
    ada.stop()
