"""packets, showpacket and why: what people and programs are told about what is stored."""

import io
import json
import re

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from federation import services
from federation.protocol.envelope import envelope_from_json, verify_packet
from federation.protocol.errors import Code
from keys.models import PublicKey
from keys.services import generate_keypair
from peers.models import Peer, PeerKey
from peers.trust import Audience
from tests.federation.makers import NOW_MS, make_received, make_verified, node
from tests.federation.test_store import DAMAGE, corrupt
from tests.identities import make_pair

pytestmark = pytest.mark.django_db

NAUGHTY = "\x1b[31mred\x1b[0m \u202eevil \x9b31m\ttab\r\nnext\0 [bold]rich[/bold] :smile:"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Ran:
    """One run of a command: its output, and its exit status when it failed."""

    def __init__(self, *arguments, out=None):
        self.stdout, self.stderr = out or io.StringIO(), io.StringIO()
        self.status, self.error = 0, ""
        try:
            call_command(*map(str, arguments), stdout=self.stdout, stderr=self.stderr)
        except CommandError as error:
            self.status, self.error = error.returncode, str(error)

    @property
    def text(self):
        assert self.status == 0, self.error
        return self.stdout.getvalue()

    @property
    def json(self):
        return json.loads(self.text)


def put(*received):
    assert set(services.store_packets(received=received, quotas={})) == {Code.ACCEPTED}


def add_peer(number, *, tier="core", name=None, blocked=False):
    """Register node `number` with its key trusted."""
    peer = Peer.objects.create(node_id=node(number).hex(), name=name, tier=tier, blocked=blocked)
    pair = make_pair(number)
    key = PublicKey.objects.create(public_key=pair.public.hex(), fingerprint=pair.fingerprint.hex())
    PeerKey.objects.create(peer=peer, public_key=key, status="trusted")
    return peer


def id_of(number, **fields):
    return make_verified(number, **fields).packet.packet_id.hex()


# packets


def test_a_packet_row_has_the_documented_fields(keys_dir):
    put(make_received(1, peer=2, title="T", tags=["a"], content={"n": [1, None]}))
    services.publish(pair=make_pair(3), node_id=node(3), drafts=[services.Draft("own")], clock=lambda: NOW_MS)
    own, received = Ran("packets", "--json").json
    assert received == {
        "id": id_of(1, title="T", tags=["a"], content={"n": [1, None]}),
        "origin": node(1).hex(),
        "kind": "note",
        "title": "T",
        "created_at": NOW_MS + 1,
        "received_at": NOW_MS + 60_000,
        "received_from": node(2).hex(),
        "tags": ["a"],
        "audience": "core",
        "content": {"n": [1, None]},
    }
    assert own.keys() == received.keys()
    assert (own["title"], own["tags"], own["received_from"], own["content"]) == ("", [], None, "own")


def test_no_packets_are_an_empty_list_and_a_plain_word():
    assert Ran("packets", "--json").json == []
    assert Ran("packets").text == ""
    assert Ran("packets", out=Terminal()).text == "no packets\n"


def test_packets_are_paged_by_an_opaque_cursor():
    put(*(make_received(number) for number in range(5)))
    seen, cursor = [], []
    for expected in (2, 2, 1):
        ran = Ran("packets", "--json", "--limit", 2, *cursor)
        assert len(ran.json) == expected
        seen += [row["created_at"] - NOW_MS for row in ran.json]
        told = re.fullmatch(r"next cursor: (\S+)\n", ran.stderr.getvalue())
        cursor = ["--cursor", told[1]] if told else []
    assert seen == [4, 3, 2, 1, 0]
    assert cursor == []


def test_a_page_that_ends_exactly_with_the_last_packet_has_no_cursor():
    put(make_received(1), make_received(2))
    assert "next cursor" not in Ran("packets", "--limit", 2).text
    assert "next cursor: p" in Ran("packets", "--limit", 1).text


def test_filters_take_names_prefixes_and_times():
    add_peer(2, name="harbour")
    put(make_received(0), make_received(86_400_000, origin=2, kind="map", tags=["sea"]), make_received(2, origin=9))

    def found(*arguments):
        return [row["created_at"] - NOW_MS for row in Ran("packets", "--json", *arguments).json]

    assert found("--origin", "harbour") == [86_400_000]
    assert found("--origin", node(2).hex()[:6]) == [86_400_000]
    assert found("--origin", node(9).hex()) == [2]
    assert found("--origin", node(9).hex(), "--origin", "harbour") == [2, 86_400_000]
    assert found("--kind", "map", "--tag", "sea") == [86_400_000]
    assert found("--since", NOW_MS + 1) == [2, 86_400_000]
    assert found("--since", "2025-10-09T08:53:20.001Z", "--until", "2025-10-10") == [2]
    assert found("--until", "2025-10-09T10:53:20.001+02:00") == [0]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--origin", "nobody"], 4),
        (["--origin", "abcdef"], 4),
        (["--cursor", "junk"], 2),
        (["--limit", "0"], 2),
        (["--limit", "-1"], 2),
        (["--limit", "x"], 2),
        (["--since", "yesterday"], 2),
        (["--until", "2025-13-01"], 2),
        (["--since", "\x1b[2J"], 2),
    ],
)
def test_a_wrong_filter_is_refused_in_one_harmless_line(arguments, status):
    ran = Ran("packets", *arguments)
    assert ran.error and "\n" not in ran.error and "\x1b" not in ran.error
    assert ran.status == status


def test_on_a_terminal_packets_are_a_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    add_peer(2, name="harbour")
    put(make_received(1, origin=2, title="[bold]Tide[/bold] :smile:", tags=["sea", "time"]))
    text = Ran("packets", "--no-color", out=Terminal()).text
    header, row = (line for line in text.splitlines() if line.strip())
    assert header.split() == ["id", "received", "kind", "title", "origin", "from", "audience", "tags"]
    assert id_of(1, origin=2, title="[bold]Tide[/bold] :smile:", tags=["sea", "time"])[:12] in row
    assert "[bold]Tide[/bold] :smile:" in row
    assert "harbour" in row and "sea, time" in row
    assert "\x1b" not in text


def test_piped_a_packet_is_one_line_of_tabs():
    put(make_received(1, title="a\tb\nc"))
    cells = Ran("packets").text.rstrip("\n").split("\t")
    assert cells[0] == id_of(1, title="a\tb\nc")
    assert cells[2] == "a\\tb\\nc"
    assert len(cells) == 9


# showpacket


def test_a_packet_is_shown_with_everything_its_origin_said_and_its_receipt():
    add_peer(2, name="harbour")
    other = "ab" * 32
    fields = {
        "title": "T",
        "tags": ["a", "b"],
        "source": "almanac",
        "confidence": 0.5,
        "depends_on": [bytes.fromhex(other)],
        "supersedes": bytes.fromhex(other),
        "expires_at": 4_070_908_800_000,
        "content": {"tide": "high"},
    }
    put(make_received(1, peer=2, **fields))
    text = Ran("showpacket", id_of(1, **fields)[:6]).text
    for expected in (
        f"id          {id_of(1, **fields)}",
        f"origin      {node(1).hex()}",
        "tags        a, b",
        "created     2025-10-09 08:53:20Z",
        make_pair(1).fingerprint.hex(),
        "source      almanac",
        "confidence  0.5",
        f"depends on  {other}",
        f"supersedes  {other}",
        "expires     2099-01-01 00:00:00Z",
        f"received    2025-10-09 08:54:20Z, handed over by harbour ({node(2).hex()[:8]})",
        "rule        accept-core-own: A CORE peer handed over its own packet: accepted, and passed on.",
        '      "tide": "high"',
    ):
        assert expected in text
    row = Ran("showpacket", id_of(1, **fields), "--json").json
    assert (row["content"], row["depends_on"]) == ({"tide": "high"}, [other])
    assert (row["received_rule"], row["hidden"]) == ("accept-core-own", False)


def test_content_cannot_pass_for_a_line_of_the_receipt():
    put(make_received(1, content="x\nreceived    from nobody"))
    assert "\n    received    from nobody" in Ran("showpacket", id_of(1, content="x\nreceived    from nobody")).text


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_envelope_prints_exactly_the_json_envelope(as_json):
    add_peer(1)
    verified = make_verified(1, content="Grüße \x9b")
    put(make_received(1, content="Grüße \x9b"))
    printed = Ran("showpacket", id_of(1, content="Grüße \x9b"), "--envelope", *as_json).text
    envelope, public_key = envelope_from_json(printed.encode())
    assert envelope == verified.envelope
    assert verify_packet(envelope, public_key).packet == verified.packet
    assert verified.envelope.body.decode() in printed


def test_on_a_terminal_the_envelope_is_harmless_and_means_the_same():
    add_peer(1)
    put(make_received(1, content=NAUGHTY))
    printed = Ran("showpacket", id_of(1, content=NAUGHTY), "--envelope", out=Terminal()).text
    assert printed.isascii() and printed.rstrip("\n").isprintable()
    assert envelope_from_json(printed.encode())[0] == make_verified(1, content=NAUGHTY).envelope


def test_the_envelope_of_an_own_packet_needs_no_key_row(keys_dir):
    identity = generate_keypair().identity
    PublicKey.objects.filter(fingerprint=identity.pair.fingerprint.hex()).update(fingerprint="0" * 64)
    (packet_id,) = services.publish(
        pair=identity.pair, node_id=identity.node_id, drafts=[services.Draft("own")], clock=lambda: NOW_MS
    )
    assert Ran("showpacket", packet_id.hex(), "--envelope").json["key"] == identity.pair.public.hex()


def test_an_envelope_whose_key_is_gone_cannot_be_printed(keys_dir):
    put(make_received(1))
    ran = Ran("showpacket", id_of(1), "--envelope")
    assert (ran.status, ran.stdout.getvalue()) == (1, "")
    assert "is not held here any more" in ran.error


@pytest.mark.parametrize(("name", "status"), [("abcdef", 4), ("00" * 32, 4), ("abc", 2), ("XYZ", 2), ("\x1b[2J", 2), ("", 2)])
@pytest.mark.parametrize("command", ["showpacket", "why"])
def test_a_packet_nobody_knows_has_status_4_and_what_is_no_id_status_2(command, name, status):
    ran = Ran(command, name)
    assert ran.status == status
    assert ran.error.isprintable()


# why


@pytest.fixture
def identity(keys_dir):
    return generate_keypair().identity


def test_why_tells_where_a_packet_came_from_and_by_which_rule():
    add_peer(2, name="harbour")
    put(make_received(1, peer=2, title="Tides", rule="accept-core-core"))
    text = Ran("why", id_of(1, title="Tides")).text
    assert f"packet {id_of(1, title='Tides')} is here: Tides\n" in text
    assert f"received 2025-10-09 08:54:20Z, handed over by harbour ({node(2).hex()[:8]})\n" in text
    assert "let in by accept-core-core: A CORE peer relayed another CORE origin's packet: accepted, and passed on.\n" in text
    answer = Ran("why", id_of(1, title="Tides"), "--json").json
    assert (answer["here"], answer["received_from"], answer["rule"]) == (True, node(2).hex(), "accept-core-core")
    assert (answer["received_at"], answer["refusals"], answer["purged_at"]) == (NOW_MS + 60_000, [], None)
    assert "would_send" not in answer


def test_why_explains_a_packet_that_was_refused_and_is_not_here():
    add_peer(2, name="harbour")
    refusal = services.Refused(
        bytes.fromhex(id_of(1)), node(2).hex(), node(1).hex(), Code.UNKNOWN_ORIGIN, "No trusted key of the packet's origin.", NOW_MS
    )
    services.note_refusals([refusal], limit=10)
    text = Ran("why", id_of(1)[:10]).text
    assert f"packet {id_of(1)} is not here\n" in text
    assert f"refused 2025-10-09 08:53:20Z from harbour ({node(2).hex()[:8]}): unknown-origin: No trusted key" in text
    answer = Ran("why", id_of(1), "--json").json
    assert answer["here"] is False
    assert answer["refusals"] == [
        {
            "code": "unknown-origin",
            "peer": node(2).hex(),
            "origin": node(1).hex(),
            "at": NOW_MS,
            "reason": "No trusted key of the packet's origin.",
        }
    ]


def test_why_remembers_what_was_purged():
    put(make_received(1))
    services.purge_packets_from(node(1).hex(), own="")
    assert "purged 2" in Ran("why", id_of(1)).text
    assert Ran("why", id_of(1), "--json").json["purged_at"] > NOW_MS


@pytest.mark.parametrize(
    ("tier", "audience", "allowed", "rule"),
    [
        ("core", "core", True, "send-core-core"),
        ("core", "private", False, "audience-private"),
        ("sandbox", "core", False, "send-sandbox"),
        ("external", "public", False, "send-external"),
        ("unknown", "public", False, "send-unknown"),
    ],
)
def test_why_says_whether_a_peer_would_get_it_and_by_which_rule(identity, tier, audience, allowed, rule):
    add_peer(1)
    add_peer(2, name="harbour", tier=tier)
    put(make_received(1, audience=Audience(audience)))
    packet_id = id_of(1, audience=Audience(audience))
    answer = Ran("why", packet_id, "--peer", "harbour", "--json").json
    assert answer["peer"] == node(2).hex()
    assert (answer["would_send"]["allowed"], answer["would_send"]["rule"]) == (allowed, rule)
    text = Ran("why", packet_id, "--peer", "harbour").text
    assert ("would get it: " if allowed else "would not get it: ") in text
    assert f"[{rule}]" in text


def test_a_peer_gets_neither_what_is_hidden_nor_what_is_not_here(identity):
    add_peer(1, name="author")
    add_peer(2, name="harbour")
    put(make_received(1))
    assert "handed this packet over itself" in Ran("why", id_of(1), "--peer", "author").text
    services.hide_packets([bytes.fromhex(id_of(1))])
    assert Ran("why", id_of(1), "--peer", "harbour", "--json").json["would_send"]["rule"] == "hidden"
    services.purge_packets_from(node(1).hex(), own="")
    assert Ran("why", id_of(1), "--peer", "harbour", "--json").json["would_send"]["rule"] == "not-here"


def test_why_with_an_unknown_peer_has_status_4(identity):
    put(make_received(1))
    assert Ran("why", id_of(1), "--peer", "nobody").status == 4


def test_why_about_a_peer_needs_this_nodes_key(keys_dir):
    add_peer(2, name="harbour")
    put(make_received(1))
    ran = Ran("why", id_of(1), "--peer", "harbour")
    assert ran.status == 1
    assert "keygen" in ran.error


# Whatever is stored


COMMANDS = [[*command, *as_json] for command in (["packets"], ["showpacket", "ID"], ["why", "ID"]) for as_json in ([], ["--json"])]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_byte_of_a_packet_moves_a_terminal(command, terminal, monkeypatch):
    """Control, C1 and bidirectional characters in every field come out as escapes; rich's markup means nothing."""
    monkeypatch.setenv("COLUMNS", "400")
    fields = {"title": NAUGHTY, "tags": [NAUGHTY[:60]], "source": NAUGHTY, "content": {NAUGHTY: NAUGHTY}}
    Peer.objects.create(node_id=node(1).hex(), name=NAUGHTY[:20].replace("\0", ""))
    put(make_received(1, **fields))
    services.note_refusals(
        [services.Refused(bytes.fromhex(id_of(1, **fields)), node(1).hex(), "", Code.TIER, NAUGHTY, NOW_MS)], limit=9
    )
    arguments = [id_of(1, **fields) if argument == "ID" else argument for argument in command]
    text = Ran(*arguments, "--no-color", out=Terminal() if terminal else None).text
    assert set(text) - {"\n", "\t"} == {character for character in text if character.isprintable()}
    if command[0] == "packets" and not terminal:
        assert "[bold]rich[/bold] :smile:" in text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_told_and_the_others_are_shown(command, damage):
    column, sqlite, postgresql = DAMAGE[damage]
    expression = postgresql if connection.vendor == "postgresql" else sqlite
    if expression is None:
        pytest.skip("PostgreSQL's types rule this out")
    put(*(make_received(number) for number in range(3)))
    corrupt(bytes.fromhex(id_of(1)), column, expression)
    ran = Ran(*(id_of(1) if argument == "ID" else argument for argument in command))
    if command[0] == "packets":
        assert id_of(0) in ran.text and id_of(2) in ran.text
    elif ran.status:
        assert ran.status == 1
        assert "damaged" in ran.error


def test_hidden_packets_are_listed_as_such():
    put(make_received(1))
    services.hide_packets([bytes.fromhex(id_of(1))])
    assert "core, hidden" in Ran("packets").text
    assert "kept here, offered to nobody" in Ran("showpacket", id_of(1)).text
    assert "hidden by the operator" in Ran("why", id_of(1)).text


def test_an_unmigrated_database_is_said_to_be_one():
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE federation_knowledgepacket RENAME TO elsewhere")
    ran = Ran("packets")
    assert (ran.status, ran.error) == (1, "the database is not migrated: run manage.py migrate")
