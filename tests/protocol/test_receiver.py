"""The receiving half: scope to Want to Ack, announcements, refusals, and peers that lie, flood or withhold."""

import msgspec
import pytest

from federation.protocol import codec, messages
from federation.protocol.envelope import Envelope
from federation.protocol.errors import Code, Goodbye
from federation.protocol.events import BatchJudged, FindMissing, Judgement, ReconcileNow
from federation.protocol.itemset import ItemSet
from federation.protocol.limits import CLOCK_SKEW_MS, Limits
from federation.protocol.negentropy import INFINITY, IdList, encode_ranges
from federation.protocol.packet import packet_id_of
from federation.protocol.reconcile import Responder
from peers.trust import KeyStatus, Tier
from tests.identities import make_manifest, make_pair
from tests.protocol.lab import Lab, Probe, make_envelope, make_local_cached, read_packet

PEER = make_local_cached(77).node_id
KEY = make_pair(77).fingerprint


class Named:
    def __init__(self, number):
        self.number = number
        self.node_id = make_local_cached(number).node_id


def setup(tier=Tier.CORE, *, others=(), seed=0, limits=None, **kwargs):
    """Return lab, node and a probe, number 77, that the node puts in `tier`; `others` are CORE origins."""
    lab = Lab(seed, limits)
    node = lab.node()
    node.trust(Named(77), tier)
    for number in others:
        node.trust(Named(number), Tier.CORE)
    return lab, node, Probe(lab, node, **kwargs)


def envelopes(count, author=77, **kwargs):
    return [make_envelope(author, number, **kwargs) for number in range(count)]


def ids_of(batch):
    return [packet_id_of(envelope.body) for envelope in batch]


def item_set(batch):
    items = ItemSet()
    for envelope in batch:
        items.add(read_packet(envelope.body).created_at // 1000, packet_id_of(envelope.body))
    return items


def offer(probe, batch, origin=PEER, key=KEY):
    """Send a Scope with what the probe holds of one origin."""
    items = item_set(batch)
    probe.send(messages.Scope([(origin, len(items), items.fingerprint(), key)]))
    return items


def serve(probe, batch, origin=PEER):
    """Offer packets and answer every request of reconciliation, Want by Want, until all is asked for."""
    items = offer(probe, batch, origin)
    answer_requests(probe, items)
    return items


def answer_requests(probe, items, done=None):
    """Answer the requests of reconciliation that are open."""
    done = set() if done is None else done
    while True:
        requests = probe.heard_of(messages.Reconcile)
        fresh = [request for place, request in enumerate(requests) if place not in done]
        if not fresh:
            return done
        done.update(range(len(requests)))
        for request in fresh:
            frame = Responder(items, split_seed=3).answer(request.frame)
            probe.send(messages.Reconcile(request.origin, messages.Role.ANSWER, frame))


def wanted(probe):
    return [packet_id for want in probe.heard_of(messages.Want) for packet_id in want.ids]


def codes(probe):
    return [code for ack in probe.heard_of(messages.Ack) for code in ack.codes]


def id_list(ids):
    """Return the answer of a responder that names these ids for the whole range."""
    return b"\x61" + encode_ranges([IdList(INFINITY, b"".join(ids))], 0)[0]


# --- from Scope to Ack ---


def test_what_differs_is_reconciled_wanted_and_acknowledged():
    _lab, node, probe = setup()
    batch = envelopes(100)
    for envelope in batch[:40]:
        node.take(envelope)
    serve(probe, batch)
    assert sorted(wanted(probe)) == sorted(ids_of(batch[40:]))
    probe.packets(0, batch[40:])
    assert node.ids == set(ids_of(batch))
    assert codes(probe) == [Code.ACCEPTED] * 60
    assert probe.end.linked.receiver.is_settled


def test_equal_and_empty_sets_are_left_alone():
    _lab, node, probe = setup()
    batch = envelopes(3)
    for envelope in batch:
        node.take(envelope)
    offer(probe, batch)
    offer(probe, [])
    assert not probe.heard_of(messages.Reconcile)


def test_a_scope_row_nobody_asked_for_is_passed_over():
    _, _, probe = setup(Tier.SANDBOX)
    offer(probe, envelopes(3, author=5), origin=make_local_cached(5).node_id, key=make_pair(5).fingerprint)
    assert not probe.heard_of(messages.Reconcile)
    assert not probe.heard_of(messages.GetManifest)
    assert probe.goodbye == (None, None)


def test_known_purged_and_refused_ids_are_dropped_from_the_need_list():
    lab, node, probe = setup()
    batch = envelopes(6)
    node.take(batch[0])
    node.store.purged.add(packet_id_of(batch[1].body))
    node.refusals[PEER].add(packet_id_of(batch[2].body), lab.now + 100)
    offer(probe, batch)
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, id_list(ids_of(batch))))
    assert sorted(wanted(probe)) == sorted(ids_of(batch[3:]))


def test_eight_origins_are_reconciled_at_once_and_the_rest_in_turn():
    numbers = range(10, 22)
    _lab, _node, probe = setup(others=numbers)
    rows = [(make_local_cached(number).node_id, 1, bytes(16), make_pair(number).fingerprint) for number in numbers]
    probe.send(messages.Scope(rows))
    assert len(probe.heard_of(messages.Reconcile)) == 8
    for expected in range(9, 13):
        origin = probe.heard_of(messages.Reconcile)[expected - 9].origin
        probe.send(messages.Reconcile(origin, messages.Role.ANSWER, b"\x61"))
        assert len(probe.heard_of(messages.Reconcile)) == expected
    assert len({request.origin for request in probe.heard_of(messages.Reconcile)}) == 12


def test_overtaken_requests_count_among_the_eight():
    numbers = range(10, 26)
    _lab, _node, probe = setup(others=numbers)
    rows = [(make_local_cached(number).node_id, 1, bytes(16), make_pair(number).fingerprint) for number in numbers]
    probe.send(messages.Scope(rows[:8]), messages.Scope(rows[8:]))
    assert len(probe.heard_of(messages.Reconcile)) == 8
    probe.send(messages.Reconcile(rows[0][0], messages.Role.ANSWER, b"\x61"))
    assert len(probe.heard_of(messages.Reconcile)) == 9


def test_a_new_scope_starts_over_and_passes_the_overtaken_answer_by():
    """One request an origin is open at a time: the new one waits for the answer to the old one."""
    _lab, _node, probe = setup()
    first, second = envelopes(5), envelopes(9)
    offer(probe, first)
    offer(probe, second)
    assert len(probe.heard_of(messages.Reconcile)) == 1
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, id_list(ids_of(first))))
    assert len(probe.heard_of(messages.Reconcile)) == 2
    assert wanted(probe) == []
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, id_list(ids_of(second))))
    assert sorted(wanted(probe)) == sorted(ids_of(second))


def test_an_origin_that_left_the_scope_is_given_up_and_may_return():
    _lab, _node, probe = setup()
    batch = envelopes(5)
    offer(probe, batch)
    probe.send(messages.Scope([]))
    offer(probe, batch)
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, b"\x61"))
    assert len(probe.heard_of(messages.Reconcile)) == 2
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, id_list(ids_of(batch))))
    assert len(wanted(probe)) == 5


@pytest.mark.parametrize("overtaken", [False, True])
@pytest.mark.parametrize("frame", [b"", b"\x62", b"\x60\x00\x00\x00"])
def test_an_answer_of_another_version_ends_the_link(frame, overtaken):
    _, _, probe = setup()
    offer(probe, envelopes(5))
    if overtaken:
        probe.send(messages.Scope([]))
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, frame))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_an_answer_comes_once_for_each_request():
    _, _, probe = setup()
    offer(probe, envelopes(5))
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, b"\x61"))
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, b"\x61"))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_an_endless_reconciliation_stops_at_the_round_cap_of_both():
    """A responder whose set changes with each answer: this side gives up before the peer would call it overrun."""
    _lab, node, probe = setup()
    for envelope in envelopes(100):
        node.take(envelope)
    offer(probe, envelopes(101))
    for number in range(200):
        requests = probe.heard_of(messages.Reconcile)
        if len(requests) <= number:
            break
        answer = b"\x61\x00\x00\x01" + number.to_bytes(16)
        probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, answer))
    assert len(probe.heard_of(messages.Reconcile)) == 64
    assert probe.goodbye == (None, None)
    offer(probe, envelopes(102))
    assert len(probe.heard_of(messages.Reconcile)) == 65, "the next Scope counts anew"


def test_a_request_open_at_a_scope_counts_among_its_rounds():
    """Answers come in order, so the peer sees that request after its Scope."""
    _lab, node, probe = setup()
    for envelope in envelopes(100):
        node.take(envelope)
    offer(probe, envelopes(101))
    offer(probe, envelopes(102))
    for number in range(200):
        if len(probe.heard_of(messages.Reconcile)) <= number:
            break
        probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, b"\x61\x00\x00\x01" + number.to_bytes(16)))
    assert len(probe.heard_of(messages.Reconcile)) == 64


# --- how much is under way ---


class Kept(list):
    """Questions that are kept and not answered."""

    def __bool__(self):
        return False


def test_no_frame_is_sent_while_8192_learned_ids_await_and_it_goes_on_after():
    _lab, _node, probe = setup(limits=Limits(learned_ids=100))
    batch = envelopes(400)
    offer(probe, batch)
    questions, probe.end.questions = probe.end.questions, Kept()
    first = ids_of(batch)[:99]
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, id_list(first)))
    offer(probe, batch)
    assert len(probe.heard_of(messages.Reconcile)) == 2, "99 learned ids leave place"
    probe.send(messages.Reconcile(PEER, messages.Role.ANSWER, id_list(ids_of(batch)[99:100])))
    offer(probe, batch)
    assert len(probe.heard_of(messages.Reconcile)) == 2, "100 do not"
    questions.extend(probe.end.questions)
    probe.end.questions = questions
    probe.send()
    assert len(wanted(probe)) == 100
    assert len(probe.heard_of(messages.Reconcile)) == 3


def test_1024_wants_are_open_at_most_and_more_follow_as_they_are_answered():
    _lab, _node, probe = setup()
    batch = envelopes(1_500)
    serve(probe, batch)
    assert len(wanted(probe)) == 1_024
    by_id = dict(zip(ids_of(batch), batch, strict=True))
    probe.packets(0, [by_id[packet_id] for packet_id in wanted(probe)[:100]], wanted(probe)[100:110])
    assert len(wanted(probe)) == 1_134


def test_higher_limits_of_the_operator_ask_for_no_more_than_the_protocol_allows():
    _lab, _node, probe = setup(limits=Limits(wants=5_000, reconcile_origins=100))
    serve(probe, envelopes(1_500))
    assert len(wanted(probe)) == 1_024


@pytest.mark.parametrize("beyond", [False, True])
def test_512_packets_may_be_unacknowledged(beyond):
    _lab, _node, probe = setup()
    probe.end.questions = Kept()
    batch = envelopes(513)
    probe.packets(0, batch[:256])
    probe.packets(1, batch[256:512])
    assert probe.end.linked.receiver.in_flight[0] == 512
    assert probe.goodbye == (None, None)
    if beyond:
        probe.packets(2, batch[512:])
        assert probe.goodbye == (Goodbye.OVERRUN, 4429)


@pytest.mark.parametrize("beyond", [0, 1])
def test_one_mebibyte_may_be_unacknowledged(beyond):
    """Counted as the bytes of the bodies, and all of a row that is none."""
    _, _, probe = setup()
    probe.end.questions = Kept()
    row = [bytes(64 * 1024), bytes(64), 5, bytes(32)]
    for batch in range(5):
        probe.send(packed(batch, [row] * 3))
    probe.send(packed(5, [row]))
    assert probe.end.linked.receiver.in_flight == (16, 1024 * 1024)
    if beyond:
        probe.send(packed(6, ["junk"]))
        assert probe.goodbye == (Goodbye.OVERRUN, 4429)


def packed(batch, rows, gone=()):
    return msgspec.msgpack.encode([12, batch, rows, list(gone)])


@pytest.mark.parametrize("batch", [1, 2**53 - 1])
def test_batches_come_in_order_from_zero(batch):
    _, _, probe = setup()
    probe.packets(batch, envelopes(1))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_a_batch_number_does_not_come_twice():
    _, _, probe = setup()
    probe.packets(0, envelopes(1))
    probe.packets(0, envelopes(1))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_batches_without_packets_are_acknowledged_at_once_and_leave_nothing_open():
    """10,000 empty ones, with the store silent: no question, no memory."""
    _lab, _node, probe = setup()
    probe.end.questions = Kept()
    for batch in range(500):
        probe.send(packed(batch, [], [bytes(32)] * (batch % 3)))
    assert len(probe.heard_of(messages.Ack)) == 500
    assert probe.end.questions == []
    assert probe.end.linked.receiver.in_flight == (0, 0)


def test_one_bad_row_never_holds_up_another():
    _lab, node, probe = setup(others=[5])
    good = make_envelope(77, 1)
    forged = make_envelope(5, 1, signer=77)
    forged = Envelope(forged.body, forged.signature, forged.timestamp, make_pair(5).fingerprint)
    rows = [row(good), "junk", row(forged), [1, 2], row(make_envelope(5, 2))]
    probe.send(packed(0, rows))
    assert codes(probe) == [Code.ACCEPTED, Code.MALFORMED, Code.BAD_SIGNATURE, Code.MALFORMED, Code.ACCEPTED]
    assert len(node.ids) == 2


def row(envelope):
    return [envelope.body, envelope.signature, envelope.timestamp, envelope.key_fingerprint]


# --- a packet that comes by itself while it is wanted ---


def test_a_live_copy_answers_the_want():
    """The receiver counts it answered on arrival."""
    _lab, node, probe = setup()
    batch = envelopes(2)
    serve(probe, batch)
    assert len(wanted(probe)) == 2
    probe.packets(0, batch)
    assert probe.end.linked.receiver._wants.unanswered == 0
    assert len(node.fetches) == 0


def test_what_is_being_judged_is_not_wanted():
    """For the peer a Want of an unacknowledged packet is answered already, so it would wait for ever."""
    _lab, node, probe = setup()
    batch = envelopes(3)
    asked = probe.end.questions
    probe.end.questions = kept = Kept()
    probe.packets(0, batch[:1])
    probe.end.questions = asked
    serve(probe, batch)
    assert sorted(wanted(probe)) == sorted(ids_of(batch[1:]))
    asked.extend(kept)
    probe.send()
    assert packet_id_of(batch[0].body) in node.ids
    assert packet_id_of(batch[0].body) not in wanted(probe)


def test_what_came_by_itself_before_its_turn_is_not_wanted():
    """An id waits for a place; its packet comes live and is judged when the place is free."""
    _lab, _node, probe = setup()
    batch = envelopes(1_030)
    serve(probe, batch)
    by_id = dict(zip(ids_of(batch), batch, strict=True))
    waiting = set(by_id) - set(wanted(probe))
    asked, probe.end.questions = probe.end.questions, Kept()
    probe.packets(0, [by_id[packet_id] for packet_id in sorted(waiting)[:3]], wanted(probe)[:6])
    assert set(wanted(probe)[1_024:]) == set(sorted(waiting)[3:])
    asked.extend(probe.end.questions)
    probe.end.questions = asked
    probe.send()
    assert len(wanted(probe)) == 1_027


# --- many links ---


def three_links(seed=0):
    """Return lab, node and three probes whose links offer the same packets of origin 5."""
    lab = Lab(seed)
    node = lab.node()
    node.trust(Named(5), Tier.CORE)
    for number in (77, 78, 79):
        node.trust(Named(number), Tier.CORE)
    probes = [Probe(lab, node, number=number) for number in (77, 78, 79)]
    origin, batch = make_local_cached(5).node_id, envelopes(20, author=5)
    for probe in probes:
        items = item_set(batch)
        probe.send(messages.Scope([(origin, 20, items.fingerprint(), make_pair(5).fingerprint)]))
        answer_requests(probe, items)
    return lab, node, probes, batch


def test_an_id_is_asked_of_one_peer_at_a_time():
    lab, _node, probes, batch = three_links()
    assert [len(wanted(probe)) for probe in probes] == [20, 0, 0]
    probes[0].packets(0, batch)
    lab.pass_time(2.0)
    assert [len(wanted(probe)) for probe in probes] == [20, 0, 0]
    assert all(probe.end.linked.receiver.is_settled for probe in probes)


def test_when_the_link_that_fetches_ends_another_takes_over():
    lab, _node, probes, _batch = three_links()
    probes[0].send(messages.Bye(Goodbye.BYE, ""))
    lab.pass_time(1.1)
    assert sorted(len(wanted(probe)) for probe in probes) == [0, 20, 20]


def test_one_peer_that_withholds_all_does_not_keep_packets_away():
    """Every packet is here in less than 30 s; the silent peer's places stay taken."""
    lab, node, probes, batch = three_links()
    for _ in range(29):
        lab.pass_time(1.0)
        for probe in probes:
            probe.send(messages.Ping(1))
            if probe is not probes[0] and len(wanted(probe)) == 20 and not node.ids:
                probe.packets(0, batch)
    assert node.ids == set(ids_of(batch))
    assert probes[0].end.linked.receiver._wants.unanswered == 20
    assert probes[0].end.session.stats.withheld == 20


def test_a_want_unanswered_for_30_s_is_free_for_others_though_the_peer_answers_the_rest():
    """A peer that answers now and then is not stalled; what it leaves out is asked of another at 30 s."""
    lab, _node, probes, batch = three_links()
    first = wanted(probes[0])
    by_id = dict(zip(ids_of(batch), batch, strict=True))
    for number in range(5):
        lab.pass_time(5.9)
        probes[0].packets(number, [by_id[first[number]]])
        for probe in probes:
            probe.send(messages.Ping(1))
    assert sum(len(wanted(probe)) for probe in probes[1:]) == 0
    lab.pass_time(0.5)
    assert probes[0].end.linked.receiver._wants._late == set(first[5:])
    lab.pass_time(1.1)
    assert sorted(wanted(probes[1]) + wanted(probes[2])) == sorted(first[5:])
    probes[0].packets(5, [by_id[first[5]]])
    assert len(probes[0].end.linked.receiver._wants._late) == 14


def test_late_ids_keep_their_places_and_are_not_wanted_again():
    """1,024 that are late leave none; the answer to one frees its place."""
    lab, _node, probe = setup()
    batch = envelopes(1_030)
    serve(probe, batch)
    asked = wanted(probe)
    assert len(asked) == 1_024
    lab.pass_time(11.0)
    probe.send(messages.Ping(1))
    items = offer(probe, batch)
    answer_requests(probe, items, set(range(len(probe.heard_of(messages.Reconcile)) - 1)))
    assert wanted(probe) == asked
    assert probe.end.linked.receiver.missing == 1_030
    probe.packets(0, [], [asked[0]])
    assert len(wanted(probe)) == 1_025
    assert len(set(wanted(probe))) == 1_025


def test_a_slow_judge_is_no_stalled_peer():
    """While this side owes Acks the window may be what holds the peer back."""
    lab, node, probe = setup()
    batch = envelopes(20)
    serve(probe, batch)
    kept, probe.end.questions = probe.end.questions, Kept()
    probe.packets(0, batch[:5])
    lab.pass_time(15.0)
    assert probe.end.linked.receiver._wants._late == set()
    kept.extend(probe.end.questions)
    probe.end.questions = kept
    probe.send()
    lab.pass_time(9.9)
    probe.send(messages.Ping(1))
    assert len(node.ids) == 5
    lab.pass_time(10.1)
    assert len(probe.end.linked.receiver._wants._late) == 15


# --- announcements ---


def test_an_announced_id_is_wanted_after_200_ms_if_it_is_still_missing():
    lab, node, probe = setup()
    batch = envelopes(3)
    node.take(batch[0])
    probe.send(messages.Have([(PEER, packet_id) for packet_id in ids_of(batch)]))
    lab.pass_time(0.1)
    probe.packets(0, batch[1:2])
    lab.pass_time(0.099)
    assert wanted(probe) == []
    lab.pass_time(0.001)
    assert wanted(probe) == ids_of(batch[2:])
    assert not [message for message in probe.heard_of(messages.Prefer) if message.mode == "push"]


def test_announcements_of_an_origin_not_accepted_are_passed_over():
    lab, _, probe = setup(Tier.SANDBOX)
    probe.send(messages.Have([(make_local_cached(5).node_id, bytes(32))]))
    lab.pass_time(0.3)
    assert wanted(probe) == []
    assert probe.goodbye == (None, None)


def test_a_duplicate_that_was_not_wanted_asks_for_announcements():
    _lab, node, probe = setup()
    batch = envelopes(3)
    node.take(batch[0])
    serve(probe, batch[1:])
    probe.packets(0, batch[1:])
    assert not probe.heard_of(messages.Prefer)
    probe.packets(1, batch[:1])
    assert [message.mode for message in probe.heard_of(messages.Prefer)] == ["announce"]
    assert codes(probe)[-1] == Code.DUPLICATE


def test_a_duplicate_that_was_wanted_does_not():
    """It came by another link meanwhile: not the peer's fault."""
    _lab, node, probe = setup()
    batch = envelopes(1)
    serve(probe, batch)
    node.take(batch[0])
    probe.packets(0, batch)
    assert codes(probe) == [Code.DUPLICATE]
    assert not probe.heard_of(messages.Prefer)


def test_endless_announcements_are_left_to_reconciliation():
    """At most 8,192 wait; what is beyond them makes the next Interest come sooner."""
    lab, _node, probe = setup()
    probe.end.questions = Kept()
    for number in range(20):
        probe.send(messages.Have([(PEER, (number * 1_024 + place).to_bytes(32)) for place in range(1_024)]))
        lab.pass_time(0.3)
    wants = probe.end.linked.receiver._wants
    assert wants._learned + len(wants._announced) == 8_192
    interests = len(probe.heard_of(messages.Interest))
    lab.pass_time(5.0)
    assert len(probe.heard_of(messages.Interest)) == interests + 1


# --- refusals ---


def test_a_refused_packet_is_not_wanted_again_for_24_hours():
    lab, node, probe = setup()
    node.trust(Named(6), Tier.CORE)
    bad = make_envelope(6, 1, signer=9)
    origin, key = make_local_cached(6).node_id, make_pair(6).fingerprint
    offer(probe, [bad], origin, key)
    probe.send(messages.Reconcile(origin, messages.Role.ANSWER, id_list(ids_of([bad]))))
    assert len(wanted(probe)) == 1
    probe.packets(0, [bad])
    assert codes(probe) == [Code.UNKNOWN_KEY]

    def ask_again():
        probe.end.handle(ReconcileNow())
        offer(probe, [bad], origin, key)
        probe.send(messages.Reconcile(origin, messages.Role.ANSWER, id_list(ids_of([bad]))))
        return len(wanted(probe))

    assert ask_again() == 1
    lab.now += 86_399
    node.refusals[PEER].holds(b"", 0)
    assert ask_again() == 1
    lab.now += 1
    assert ask_again() == 2


def test_a_change_of_policy_forgets_refusals():
    _lab, node, probe = setup()
    probe.packets(0, envelopes(1, author=6))
    assert codes(probe) == [Code.UNKNOWN_ORIGIN]
    assert len(node.refusals[PEER]) == 1
    node.trust(Named(6), Tier.CORE)
    assert len(node.refusals[PEER]) == 0


def test_an_early_packet_is_looked_for_when_it_is_due():
    lab, _node, probe = setup()
    early = make_envelope(77, 0, ahead_ms=CLOCK_SKEW_MS + 60_000)
    probe.packets(0, [early])
    assert codes(probe) == [Code.EARLY]
    interests = len(probe.heard_of(messages.Interest))
    for _ in range(59):
        lab.pass_time(1.0)
        probe.send(messages.Ping(1))
    assert len(probe.heard_of(messages.Interest)) == interests
    lab.pass_time(1.1)
    assert len(probe.heard_of(messages.Interest)) == interests + 1
    serve(probe, [early])
    probe.packets(1, [early])
    assert codes(probe)[-1] == Code.ACCEPTED


def test_an_early_packet_is_looked_for_when_it_is_due_on_a_later_link_too():
    lab, node, probe = setup()
    probe.packets(0, [make_envelope(77, 0, ahead_ms=CLOCK_SKEW_MS + 60_000)])
    assert codes(probe) == [Code.EARLY]
    lab.pass_time(30)
    probe.send(messages.Bye(Goodbye.BYE, ""))
    again = Probe(lab, node)
    lab.pass_time(29)
    again.send(messages.Ping(1))
    assert len(again.heard_of(messages.Interest)) == 1
    lab.pass_time(1.1)
    assert len(again.heard_of(messages.Interest)) == 2


def test_a_clock_set_right_makes_early_packets_due_at_once():
    """The clock here was an hour behind; nobody waits for the rest of that hour."""
    lab, node, probe = setup()
    node.offset_ms = -3_600_000
    on_time = make_envelope(77, 0)
    probe.packets(0, [on_time])
    assert codes(probe) == [Code.EARLY]
    interests = len(probe.heard_of(messages.Interest))
    lab.pass_time(5)
    node.offset_ms = 0
    probe.send(messages.Ping(1))
    assert len(probe.heard_of(messages.Interest)) == interests + 1
    serve(probe, [on_time])
    probe.packets(1, [on_time])
    assert codes(probe)[-1] == Code.ACCEPTED


def test_without_an_interest_nothing_is_asked_again():
    """A peer that gives nothing on request may still push; a busy store then sets no timer that nothing clears."""
    lab, node, probe = setup(pull=False)
    node.busy = True
    probe.packets(0, envelopes(1))
    assert codes(probe) == [Code.BUSY]
    lab.pass_time(20)
    assert not probe.heard_of(messages.Interest)


def test_an_early_packet_that_tells_no_time_is_not_looked_for_at_once():
    """A second at least, or Interest and refusal would chase each other."""
    lab, _node, probe = setup()
    questions, probe.end.questions = probe.end.questions, Kept()
    probe.packets(0, envelopes(1))
    probe.end.handle(BatchJudged(0, [Judgement(Code.EARLY, None, due_in_s=0.0)]))
    probe.end.questions = questions
    assert probe.end.session.deadline == lab.now + 1.0


def test_many_early_packets_cost_64_moments_and_each_is_found():
    """Beyond them the latest moment stands for the rest; none is due later than that."""
    lab, _node, probe = setup(limits=Limits(interest_interval_s=1e9))
    batch = [make_envelope(77, number, ahead_ms=CLOCK_SKEW_MS + number * 20_000) for number in range(1, 101)]
    probe.packets(0, batch)
    assert set(codes(probe)) == {Code.EARLY}
    moments = probe.end.linked.receiver._again
    assert len(moments) == 64
    assert max(moments) == pytest.approx(lab.now + 2_000, abs=1)


def test_a_busy_store_is_asked_for_again_after_5_s():
    lab, node, probe = setup()
    batch = envelopes(2)
    node.busy = True
    probe.packets(0, batch)
    assert codes(probe) == [Code.BUSY] * 2
    node.busy = False
    interests = len(probe.heard_of(messages.Interest))
    lab.pass_time(5.0)
    assert len(probe.heard_of(messages.Interest)) == interests + 1
    serve(probe, batch)
    assert len(wanted(probe)) == 2


@pytest.mark.parametrize(("tier", "ends"), [(Tier.SANDBOX, True), (Tier.CORE, False)])
def test_twenty_rejected_packets_cost_nothing_and_one_more_a_non_core_peer_its_link(tier, ends):
    _lab, _node, probe = setup(tier)
    for batch in range(20):
        probe.send(packed(batch, ["junk"]))
    assert probe.goodbye == (None, None)
    probe.send(packed(20, ["junk"]))
    assert (probe.goodbye == (Goodbye.PENALTY, 4005)) is ends
    assert len(probe.end.penalties) == ends


def test_the_budget_of_rejections_outlives_the_link():
    """A new link brings no new budget; the penalty does."""
    lab, node, probe = setup(Tier.SANDBOX)
    probe.send(packed(0, ["junk"] * 15))
    probe.send(messages.Bye(Goodbye.BYE, ""))
    again = Probe(lab, node)
    again.send(packed(0, ["junk"] * 6))
    assert again.goodbye == (Goodbye.PENALTY, 4005)
    third = Probe(lab, node)
    third.send(packed(0, ["junk"] * 20))
    assert third.goodbye == (None, None)


# --- interest ---


def test_interest_comes_again_every_ten_minutes_more_or_less():
    for seed in range(2):
        lab, _, probe = setup(seed=seed)
        start, moments = lab.now, []
        while len(moments) < 3:
            lab.pass_time(2.0)
            probe.send(messages.Ping(1))
            if len(probe.heard_of(messages.Interest)) > len(moments) + 1:
                moments.append(lab.now - start)
        gaps = [after - before for before, after in zip([0.0, *moments], moments, strict=False)]
        assert all(478 <= gap <= 722 for gap in gaps), gaps


def test_interest_names_what_is_held():
    """Zero counts included."""
    _lab, node, probe = setup(others=[5])
    node.take(make_envelope(77, 1))
    probe.end.handle(ReconcileNow())
    counts = dict(probe.last(messages.Interest).rows)
    assert counts == {node.node_id: 0, PEER: 1, make_local_cached(5).node_id: 0}


# --- unfamiliar keys ---


def test_an_unfamiliar_key_in_a_scope_asks_for_the_manifest():
    """Once for each Interest, and not for this node itself."""
    _lab, node, probe = setup()
    for _ in range(2):
        probe.send(messages.Scope([(PEER, 0, bytes(16), bytes(32)), (node.node_id, 0, bytes(16), bytes(31) + b"1")]))
    assert [question.origin for question in probe.heard_of(messages.GetManifest)] == [PEER]
    probe.send(messages.Manifest(PEER, None))
    probe.send(messages.Scope([(PEER, 0, bytes(16), bytes(32))]))
    assert len(probe.heard_of(messages.GetManifest)) == 1
    probe.end.handle(ReconcileNow())
    probe.send(messages.Scope([(PEER, 0, bytes(16), bytes(32))]))
    assert len(probe.heard_of(messages.GetManifest)) == 2


def test_another_origins_key_is_unfamiliar_too():
    _lab, _node, probe = setup(others=[5])
    probe.send(messages.Scope([(PEER, 0, bytes(16), make_pair(5).fingerprint)]))
    assert [question.origin for question in probe.heard_of(messages.GetManifest)] == [PEER]


def test_an_unfamiliar_key_in_an_envelope_asks_for_the_manifest_once():
    _lab, _node, probe = setup(others=[5])
    batch = [make_envelope(5, number, signer=9) for number in range(3)]
    probe.packets(0, batch[:2])
    probe.packets(1, batch[2:])
    assert codes(probe) == [Code.UNKNOWN_KEY] * 3
    assert [question.origin for question in probe.heard_of(messages.GetManifest)] == [make_local_cached(5).node_id]


def test_a_manifest_that_brings_a_key_triggers_interest_and_the_packets_come():
    lab = Lab()
    node = lab.node()
    node.trust(Named(77), Tier.CORE)
    node.trust(Named(5), Tier.CORE)
    table = node.table
    node.set_table(type(table)(table.own, table.standings, {k: v for k, v in table.keys.items() if v.node_id != Named(5).node_id}))
    probe = Probe(lab, node)
    batch = envelopes(1, author=5)
    probe.packets(0, batch)
    assert codes(probe) == [Code.UNKNOWN_KEY]
    interests = len(probe.heard_of(messages.Interest))
    manifest = make_manifest(5)
    probe.send(messages.Manifest(Named(5).node_id, (manifest.body, manifest.signature)))
    assert len(probe.heard_of(messages.Interest)) == interests + 1
    probe.packets(1, batch)
    assert codes(probe)[-1] == Code.ACCEPTED


@pytest.mark.parametrize("fault", ["unsigned", "of another node", "not asked for"])
def test_manifests_that_do_not_fit_teach_nothing(fault):
    _lab, _node, probe = setup()
    asked = Named(5).node_id if fault == "not asked for" else PEER
    probe.send(messages.Scope([(PEER, 0, bytes(16), bytes(32))]))
    manifest = make_manifest(5 if fault == "of another node" else 77)
    signature = bytes(64) if fault == "unsigned" else manifest.signature
    probe.send(messages.Manifest(asked, (manifest.body, signature)))
    assert probe.end.manifests == []
    assert (probe.goodbye[0] is Goodbye.PROTOCOL) is (fault == "not asked for")


# --- policy ---


def test_packets_in_flight_at_a_demotion_are_declined_tier():
    """The grant of the Welcome still lets them come; the policy of now declines them, and nothing is counted."""
    _lab, node, probe = setup(others=[5])
    for tier in (Tier.SANDBOX, Tier.EXTERNAL):
        node.trust(Named(77), tier)
    probe.packets(0, [make_envelope(77, 1), make_envelope(5, 1)])
    probe.send(messages.Have([(PEER, bytes(32))]), messages.Scope([]))
    assert codes(probe) == [Code.TIER, Code.TIER]
    assert probe.goodbye == (None, None)
    assert node.refusals[PEER].rejections == 0
    assert node.ids == set()


def test_a_store_that_names_more_than_was_learned_is_counted_right():
    """FindMissing is answered with what was asked; the count of learned ids returns to nothing."""
    _lab, _node, probe = setup()
    serve(probe, envelopes(40))
    assert probe.end.linked.receiver._wants._learned == 0
    assert all(isinstance(question, FindMissing) for question in probe.end.questions)


def test_keys_status_decides_what_is_familiar():
    """An unconfirmed key in an envelope is asked about like an unknown one."""
    _lab, node, probe = setup()
    node.trust(Named(5), Tier.CORE)
    node.trust(Named(5), Tier.CORE, key_status=KeyStatus.UNCONFIRMED)
    table = node.table
    standing = table.standings[Named(5).node_id]
    keyed = type(standing)(standing.node_id, standing.tier, keyed=True)
    node.set_table(type(table)(table.own, {**table.standings, keyed.node_id: keyed}, table.keys))
    probe.packets(0, envelopes(1, author=5))
    assert codes(probe) == [Code.UNKNOWN_KEY]
    assert len(probe.heard_of(messages.GetManifest)) == 1


def test_rows_are_encoded_as_the_codec_does():
    """The hand-made rows of this file are what the codec makes."""
    envelope = make_envelope(77, 1)
    assert packed(3, [row(envelope)]) == codec.encode_packets(3, [envelope], [])
