"""Publishing: what people hand in becomes signed packets, line by line, or a clear refusal."""

import io
import json
import sys

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError

from federation import services, store
from federation.models import KnowledgePacket, OriginUsage
from federation.protocol.envelope import Envelope, verify_packet
from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import MAX_PACKET_BYTES
from federation.services import Draft
from keys.services import generate_keypair
from peers.trust import Audience
from tests.federation.makers import NOW_MS, make_packet, node
from tests.identities import make_pair

pytestmark = pytest.mark.django_db


def publish(*drafts, clock=lambda: NOW_MS, **options):
    return services.publish(pair=make_pair(1), node_id=node(1), drafts=iter(drafts), clock=clock, **options)


def contents():
    return [json.loads(bytes(row.body))["content"] for row in KnowledgePacket.objects.order_by("arrival")]


def stored_ids():
    return [bytes(row.packet_id).hex() for row in KnowledgePacket.objects.order_by("arrival")]


# The service


def test_a_published_packet_is_signed_by_this_node_and_verifies():
    draft = Draft(
        {"a": 1},
        kind="fact",
        title="T",
        tags=("x", "y"),
        audience=Audience.PUBLIC,
        source="me",
        confidence=0.25,
        depends_on=(make_packet(1).packet_id,),
        supersedes=make_packet(2).packet_id,
        expires_at=NOW_MS * 2,
    )
    (packet_id,) = publish(draft)
    row = KnowledgePacket.objects.get()
    envelope = Envelope(bytes(row.body), bytes(row.signature), row.timestamp, bytes(row.key_fingerprint))
    packet = verify_packet(envelope, make_pair(1).public).packet
    assert (packet.packet_id, packet.origin, packet.content(), packet.kind) == (packet_id, node(1), {"a": 1}, "fact")
    assert (packet.title, packet.tags, packet.audience, packet.source) == ("T", ("x", "y"), Audience.PUBLIC, "me")
    assert (packet.confidence, packet.depends_on, packet.supersedes) == (0.25, draft.depends_on, draft.supersedes)
    assert (packet.expires_at, packet.created_at, envelope.timestamp) == (NOW_MS * 2, NOW_MS, NOW_MS)
    assert (row.received_from, row.received_rule, row.received_at) == ("", "published-here", NOW_MS)
    assert OriginUsage.objects.get().packets == 1


def test_equal_content_makes_as_many_packets_as_were_asked_for():
    """Within one millisecond each gets a time of its own, so that none is taken for a duplicate."""
    ids = publish(*(Draft("again") for _ in range(1_201)))
    assert len(set(ids)) == KnowledgePacket.objects.count() == 1_201


def test_times_follow_the_clock_where_content_differs():
    ticks = iter(range(NOW_MS, NOW_MS + 10))
    publish(Draft("a"), Draft("b"), Draft("c"), clock=lambda: next(ticks))
    times = list(KnowledgePacket.objects.order_by("arrival").values_list("created_at", flat=True))
    assert times == [NOW_MS, NOW_MS + 1, NOW_MS + 2]


def test_batches_are_told_as_they_become_durable():
    batches = []
    ids = publish(*(Draft(number) for number in range(2 * services.BATCH + 1)), stored=batches.append)
    assert [len(batch) for batch in batches] == [services.BATCH, services.BATCH, 1]
    assert [packet_id for batch in batches for packet_id in batch] == ids


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("good", [0, 1, 499, 500, 501])
def test_a_bad_draft_ends_the_run_and_those_before_it_stay_unless_atomic(good, atomic):
    drafts = [*(Draft(number) for number in range(good)), Draft("x" * MAX_PACKET_BYTES), Draft("never reached")]
    with pytest.raises(PacketError) as caught:
        publish(*drafts, atomic=atomic)
    assert caught.value.code is Code.TOO_LARGE
    assert contents() == ([] if atomic else list(range(good)))


def test_an_atomic_run_stores_everything_in_order():
    ids = publish(*(Draft(number) for number in range(1_001)), atomic=True)
    assert len(ids) == 1_001
    assert contents() == list(range(1_001))


def test_an_atomic_run_that_fails_while_storing_leaves_nothing(monkeypatch):
    insert = store.insert_packets

    def disk_fills_up(rows):
        if KnowledgePacket.objects.exists():
            raise OperationalError("database or disk is full")
        insert(rows)

    monkeypatch.setattr(store, "insert_packets", disk_fills_up)
    with pytest.raises(OperationalError):
        publish(*(Draft(number) for number in range(services.BATCH + 1)), atomic=True)
    assert contents() == []


def test_the_largest_packet_is_published_and_one_byte_more_is_not():
    overhead = len(make_packet(0, content="").body)
    publish(Draft("x" * (MAX_PACKET_BYTES - overhead)))
    assert len(bytes(KnowledgePacket.objects.get().body)) == MAX_PACKET_BYTES
    with pytest.raises(PacketError, match="at most 65536"):
        publish(Draft("x" * (MAX_PACKET_BYTES - overhead + 1)))


# The command


@pytest.fixture
def identity(keys_dir):
    return generate_keypair().identity


@pytest.fixture
def run(identity):
    """Run publish; returns what it printed, as JSON under `--json`."""

    def run(*arguments):
        out = io.StringIO()
        call_command("publish", *map(str, arguments), stdout=out, stderr=io.StringIO())
        return json.loads(out.getvalue()) if "--json" in arguments else out.getvalue()

    return run


def refused(run, *arguments):
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    return caught.value.returncode, str(caught.value)


@pytest.fixture
def stdin(monkeypatch):
    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_text_becomes_a_note_for_core_peers(run, identity):
    printed = run("--text", "Hello")
    row = KnowledgePacket.objects.get()
    assert printed == f"published {bytes(row.packet_id).hex()}\n"
    assert (row.kind, row.audience, row.origin) == ("note", "core", identity.node_id.hex())
    assert contents() == ["Hello"]


def test_under_json_the_id_is_all_that_is_printed(run):
    assert run("--text", "Hello", "--json") == {"id": bytes(KnowledgePacket.objects.get().packet_id).hex()}


def test_every_option_reaches_the_packet(run):
    first = run("--text", "first", "--json")["id"]
    other = "ab" * 32
    run(
        *("--text", "x", "--kind", "fact", "--title", "T", "--tag", "a", "--tag", "b", "--audience", "public"),
        *("--source", "almanac", "--confidence", "0.5", "--depends-on", other, "--depends-on", first[:8]),
        *("--supersedes", first, "--expires", "2099-01-01"),
    )
    packet = json.loads(bytes(KnowledgePacket.objects.order_by("-arrival").first().body))
    for changing in ("origin", "created_at"):
        del packet[changing]
    assert packet == {
        "v": 1,
        "kind": "fact",
        "title": "T",
        "tags": ["a", "b"],
        "audience": "public",
        "source": "almanac",
        "confidence": 0.5,
        "depends_on": [other, first],
        "supersedes": first,
        "expires_at": 4_070_908_800_000,
        "content": "x",
    }


def test_a_json_file_is_its_value_and_any_other_file_its_text(run, tmp_path):
    text = '{"tide": [1, 2.5, null]}\n'
    for name in ("tides.json", "tides.JSON", "tides.txt"):
        (tmp_path / name).write_text(text)
        run(tmp_path / name)
    assert contents() == [{"tide": [1, 2.5, None]}, {"tide": [1, 2.5, None]}, text]


def test_standard_input_is_text(run, stdin):
    stdin("Grüße\n".encode())
    run("-")
    assert contents() == ["Grüße\n"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a FILE"),
        (["-", "--text", "x"], "give a FILE"),
        (["--text", "x", "--ndjson"], "--ndjson reads a FILE"),
        (["--text", "x", "--atomic"], "--atomic goes with --ndjson"),
        (["--text", "x", "--kind", "No Such"], "kind is 'No Such'"),
        (["--text", "x", "--kind", "ark.retract"], "malformed"),
        (["--text", "x", "--kind", "ark.other"], "unsupported"),
        (["--text", "x", "--title", "t" * 201], "at most 200 characters"),
        (["--text", "x", "--source", "s" * 513], "at most 512 characters"),
        (["--text", "x", *["--tag", "t"] * 33], "at most 32 strings"),
        (["--text", "x", "--tag", "t" * 65], "at most 64 characters"),
        (["--text", "x", "--supersedes", "xyz"], "no packet id"),
        (["--text", "\udcff"], "not-canonical"),
        (["--text", "x" * 70_000], "at most 65536"),
    ],
)
def test_wrong_usage_is_refused_with_status_2_and_nothing_is_stored(run, arguments, reason):
    status, message = refused(run, *arguments)
    assert status == 2
    assert reason in message
    assert "\n" not in message
    assert contents() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--audience", "everybody"],
        ["--confidence", "1.01"],
        ["--confidence", "-0.01"],
        ["--confidence", "nan"],
        ["--confidence", "high"],
        ["--expires", "tomorrow"],
        ["--expires", "-5"],
        ["--expires", "9007199254740992"],
        ["--expires", "1969-12-31"],
    ],
)
def test_an_option_out_of_range_is_refused(run, arguments):
    with pytest.raises(CommandError):
        run("--text", "x", *arguments)
    assert contents() == []


def test_the_ends_of_each_range_are_accepted(run):
    run("--text", "x", "--confidence", "0", "--expires", "9007199254740991")
    run("--text", "x", "--confidence", "1", "--title", "t" * 200, "--source", "s" * 512, *["--tag", "t" * 64] * 32)
    assert len(contents()) == 2


def test_a_prefix_that_names_no_packet_has_status_4(run):
    assert refused(run, "--text", "x", "--depends-on", "abcdef")[0] == 4


def test_a_file_that_cannot_be_read_has_status_1(run, tmp_path):
    for name in (tmp_path / "missing", tmp_path):
        status, message = refused(run, name)
        assert status == 1
        assert "cannot be read" in message


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("x.json", b'{"a": 1, "a": 2}', "malformed"),
        ("x.json", b'{"a": NaN}', "malformed"),
        ("x.json", b"\xef\xbb\xbf{}", "malformed"),
        ("x.json", b"", "malformed"),
        ("x.json", b"[" * 40 + b"]" * 40, "malformed"),
        ("x.json", b"9007199254740992", "not-canonical"),
        ("x.json", b'"\\ud800"', "not-canonical"),
        ("x.txt", b"\xff\xfe", "malformed"),
        ("x.txt", b"x" * 600_000, "too-large"),
    ],
)
def test_content_that_is_no_content_is_refused_by_code(run, tmp_path, name, data, code):
    (tmp_path / name).write_bytes(data)
    status, message = refused(run, tmp_path / name)
    assert status == 2
    assert f"[{code}]" in message
    assert contents() == []


def test_without_a_key_publishing_fails_and_says_what_to_do(keys_dir):
    with pytest.raises(CommandError, match="keygen") as caught:
        call_command("publish", "--text", "x", stdout=io.StringIO())
    assert caught.value.returncode == 1


# Lines


@pytest.fixture
def lines(tmp_path):
    def write(*lines):
        path = tmp_path / "lines.ndjson"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return path

    return write


def test_each_line_is_one_packet_in_order_and_blank_lines_are_passed_over(run, lines):
    path = lines('{"n": 1}', "", "  \r", '"two"', "3", "[4]\r", "null", "")
    ids = run(path, "--ndjson", "--json", "--tag", "t")["ids"]
    assert contents() == [{"n": 1}, "two", 3, [4], None]
    assert ids == stored_ids()
    assert all(tags == ["t"] for tags in KnowledgePacket.objects.values_list("tags", flat=True))


def test_lines_come_from_standard_input_too(run, stdin):
    stdin(b"1\n2\n")
    assert run("-", "--ndjson") == "published 2 packets\n"
    assert contents() == [1, 2]


def test_no_lines_are_no_packets(run, lines):
    assert run(lines(""), "--ndjson", "--json") == {"ids": []}


BAD_LINES = ["{bad", '{"a":1,"a":1}', "9007199254740992", '"' + "x" * 70_000 + '"', b'"\xff"', "x" * 600_000, "1 2"]


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named_and_the_good_ones_before_it_stay_published(run, lines, bad):
    path = lines("1", "", "2", bad, "5")
    status, message = refused(run, path, "--ndjson")
    assert status == 2
    assert message.startswith("line 4: ")
    assert message.endswith("the 2 packets before it are published")
    assert contents() == [1, 2]


def test_the_ids_of_the_good_lines_are_told_under_json(identity, lines):
    out = io.StringIO()
    with pytest.raises(CommandError, match="line 2"):
        call_command("publish", str(lines("1", "bad")), "--ndjson", "--json", stdout=out)
    assert json.loads(out.getvalue()) == {"ids": [bytes(KnowledgePacket.objects.get().packet_id).hex()]}


def test_with_atomic_a_bad_line_leaves_nothing_published(run, lines):
    path = lines(*(str(number) for number in range(1_100)), "bad")
    status, message = refused(run, path, "--ndjson", "--atomic")
    assert status == 2
    assert message.startswith("line 1101: ")
    assert message.endswith("nothing is published")
    assert contents() == []


def test_with_atomic_good_lines_are_published(run, lines):
    assert run(lines(*(str(number) for number in range(1_100))), "--ndjson", "--atomic") == "published 1100 packets\n"
    assert contents() == list(range(1_100))


def test_a_line_may_be_longer_than_its_canonical_bytes(run, lines):
    """Escapes of six bytes for one character: 12,000 of them make 72,000 bytes of text, and 12,000 of content."""
    run(lines('"' + "\\u0041" * 12_000 + '"'), "--ndjson")
    assert contents() == ["A" * 12_000]
