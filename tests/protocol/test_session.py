"""PeerSession: every message in every state and role, endings, liveness, and the operator's changes on a live link."""

from collections import deque
from dataclasses import replace
from itertools import product

import msgspec
import pytest

from federation.protocol import codec, messages
from federation.protocol.errors import Goodbye, LocalProtocolError
from federation.protocol.events import (
    Authenticated,
    BatchJudged,
    EndLink,
    EndRequested,
    FrameArrived,
    LinkAllowed,
    LinkRefused,
    LinkUp,
    Opened,
    PolicyChanged,
    ReconcileNow,
    SendFrame,
    TimerFired,
    TransportClosed,
)
from federation.protocol.handshake import ClientHandshake
from federation.protocol.limits import Limits
from federation.protocol.session import Connecting, Deciding, Ended, Linked, Welcoming
from peers.trust import KeyStatus, Standing, Tier
from tests.fakes import FakeSuite
from tests.identities import make_pair
from tests.protocol.lab import EPOCH_MS, End, Lab, Probe, make_envelope, make_local_cached

ORIGIN = make_local_cached(77).node_id
STRANGER = make_local_cached(90).node_id
ID = bytes(32)
CLOSE = {code: code.close_code for code in Goodbye}

SAMPLES = {
    "HelloClient": messages.HelloClient([1], "arklattice", bytes(32)),
    "HelloServer": messages.HelloServer(1, "arklattice", bytes(32)),
    "Auth": messages.Auth((b"{}", bytes(64)), bytes(64)),
    "Welcome": messages.Welcome(True, True, True, (512, 1024 * 1024), EPOCH_MS),
    "Bye": messages.Bye(Goodbye.BYE, "enough"),
    "Interest": messages.Interest([(ORIGIN, 0)]),
    "Scope": messages.Scope([]),
    "GetManifest": messages.GetManifest(ORIGIN),
    "Manifest": messages.Manifest(ORIGIN, None),
    "Request": messages.Reconcile(STRANGER, messages.Role.REQUEST, b"\x61"),
    "Answer": messages.Reconcile(ORIGIN, messages.Role.ANSWER, b"\x61"),
    "Want": messages.Want([ID]),
    "Packets": messages.Packets(0, [], [ID]),
    "Ack": messages.Ack(0, []),
    "Have": messages.Have([(ORIGIN, ID)]),
    "Prefer": messages.Prefer(messages.Preference.ANNOUNCE),
    "Query": messages.Query(1, "text", None, None, None, None, None, 10, None),
    "Result": messages.Result(1, "ok", [], None),
    "Ping": messages.Ping(5),
    "Pong": messages.Pong(12_345, 5),
}
EXTENSION = msgspec.msgpack.encode([64, "anything"])
UNKNOWN = {
    "number 20": msgspec.msgpack.encode([20]),
    "number 63": msgspec.msgpack.encode([63]),
    "number 0": msgspec.msgpack.encode([0]),
}
TIERS = {Tier.CORE: (True, True), Tier.SANDBOX: (True, False), Tier.EXTERNAL: (False, False)}


def expected(name, *, push, pull, may_push, may_pull):
    """Return whether a linked session takes a message: `push`, `pull` are its grants, `may_…` the peer's."""
    return {
        "Interest": pull,
        "Prefer": pull,
        "Want": pull and may_push,
        "Scope": may_pull,  # then an Interest was sent, and this answers it
        "Packets": push,
        "Have": push,
        "GetManifest": True,
        "Query": True,
        "Ping": True,
    }.get(name, False)


def node_and_probe(tier=Tier.CORE, *, seed=0, limits=None, **kwargs):
    lab = Lab(seed, limits)
    node = lab.node()
    node.trust(_numbered(77), tier)
    return lab, node, Probe(lab, node, **kwargs)


class _numbered:
    """A node that is only named."""

    def __init__(self, number):
        self.number = number
        self.node_id = make_local_cached(number).node_id


# --- every message everywhere ---


@pytest.mark.parametrize("dials", [True, False])
@pytest.mark.parametrize("tier", TIERS)
def test_a_linked_session_takes_what_the_welcomes_allow_and_nothing_else(tier, dials):
    """Table of messages, section 5: whatever is out of place ends the link `protocol`, in words; nothing raises."""
    push, pull = TIERS[tier]
    for (name, message), may_push, may_pull in product(SAMPLES.items(), (True, False), (True, False)):
        _, _, probe = node_and_probe(tier, dials=dials, push=may_push, pull=may_pull)
        assert probe.goodbye == (None, None)
        probe.send(message)
        if name == "Bye":
            assert probe.end.ending == EndLink(4000, Goodbye.BYE, "enough", by_peer=True)
        elif expected(name, push=push, pull=pull, may_push=may_push, may_pull=may_pull):
            assert probe.goodbye == (None, None), (name, may_push, may_pull)
        else:
            assert probe.goodbye == (Goodbye.PROTOCOL, 4400), (name, may_push, may_pull)
            assert not probe.end.ending.by_peer


@pytest.mark.parametrize("name", SAMPLES)
def test_before_the_auths_everything_but_the_handshake_closes_silently(name):
    """State Connecting, both roles: 4400 and not a word."""
    lab = Lab()
    node = lab.node()
    for dials in (True, False):
        end = End(lab, node, dials=dials)
        first = end.session.handle(Opened(), now=lab.now, now_ms=0)
        assert [type(effect) for effect in first] == ([SendFrame] if dials else [])
        if name == ("HelloServer" if dials else "HelloClient"):
            continue
        effects = end.session.handle(FrameArrived(codec.encode(SAMPLES[name])), now=lab.now, now_ms=0)
        assert [type(effect) for effect in effects] == [EndLink]
        assert effects[0].close_code == 4400
        assert isinstance(end.session.state, Ended)


@pytest.mark.parametrize("name", [*SAMPLES, "extension"])
@pytest.mark.parametrize("held", [True, False], ids=["before the decision", "after it"])
def test_in_place_of_welcome_only_goodbye_may_come(name, held):
    """States Deciding and Welcoming: the first sealed frame after Auth is Welcome or Goodbye."""
    message = SAMPLES.get(name, EXTENSION)
    lab, _, probe = node_and_probe(welcome=False)
    if held:
        lab, _, probe = deciding()
        probe.end.inbox.append(probe.seal(message))
        probe.end._take_frame()
        assert isinstance(probe.end.session.state, Deciding)
        lab.run()
    else:
        assert isinstance(probe.end.session.state, Welcoming)
        probe.send(message)
    if name == "Welcome":
        assert isinstance(probe.end.session.state, Linked)
    elif name == "Bye":
        assert probe.end.ending.by_peer
    else:
        assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def deciding():
    """Return lab, node and a probe that sent its Auth, the shell's answer still waiting."""
    lab = Lab()
    node = lab.node()
    node.trust(_numbered(77), Tier.CORE)
    probe = Probe.__new__(Probe)
    probe.lab, probe.inbox, probe._messages, probe.closed = lab, deque(), [], None
    probe.end = End(lab, node, dials=False, other=probe)
    lab.ends.append(probe.end)
    handshake = ClientHandshake(make_local_cached(77), FakeSuite(), bytes(32), None)
    probe.end.handle(FrameArrived(handshake.hello()))
    handshake.receive(probe.inbox.popleft())
    handshake.receive(probe.inbox.popleft())
    probe.end.handle(FrameArrived(handshake.auth()))
    secured = handshake.secured()
    probe.sealer, probe.opener = secured.sealer, secured.opener
    assert isinstance(probe.end.questions[0], Authenticated)
    return lab, node, probe


def test_a_dialler_may_take_its_welcome_back_before_the_decision():
    """A Goodbye after the Welcome is held too; it ends the link as the peer's own wish."""
    _lab, _, probe = deciding()
    probe.send(SAMPLES["Welcome"], SAMPLES["Bye"])
    assert probe.end.ending.by_peer and probe.end.ending.goodbye is Goodbye.BYE


def test_anything_else_after_an_early_welcome_is_out_of_place():
    """Nothing else goes out before both Welcomes."""
    lab, _, probe = deciding()
    for message in (SAMPLES["Welcome"], SAMPLES["Ping"]):
        probe.end.inbox.append(probe.seal(message))
        probe.end._take_frame()
    lab.run()
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_a_third_frame_before_the_decision_closes_silently():
    _lab, _, probe = deciding()
    for message in (SAMPLES["Welcome"], SAMPLES["Ping"], SAMPLES["Ping"]):
        probe.end.inbox.append(probe.seal(message))
        probe.end._take_frame()
    assert probe.goodbye == (None, 4400)


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_numbers_below_64_end_the_link(name):
    _, _, probe = node_and_probe()
    probe.send(UNKNOWN[name])
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_extensions_are_ignored_and_a_longer_welcome_is_read():
    """Numbers from 64 on pass by; elements after the known ones of Welcome belong to a later version."""
    _, _, probe = node_and_probe(welcome=False)
    probe.send(msgspec.msgpack.encode([4, True, True, True, [512, 1 << 20], EPOCH_MS, [64, "name"], "later", {"a": 1}]))
    probe.send(EXTENSION, SAMPLES["Ping"])
    assert probe.goodbye == (None, None)
    assert probe.last(messages.Pong).echo == 5


# --- who is refused ---


@pytest.mark.parametrize(
    ("tier", "blocked", "goodbye"),
    [(Tier.UNKNOWN, False, Goodbye.PENDING), (Tier.CORE, True, Goodbye.BLOCKED), (Tier.EXTERNAL, True, Goodbye.BLOCKED)],
)
def test_who_may_not_link_hears_why_in_place_of_welcome(tier, blocked, goodbye):
    lab = Lab()
    node = lab.node()
    node.trust(_numbered(77), tier, blocked=blocked)
    for dials in (True, False):
        probe = Probe(lab, node, dials=dials)
        assert probe.goodbye == (goodbye, goodbye.close_code)
        assert not probe.heard_of(messages.Welcome)


def test_a_decision_overtaken_by_a_change_of_policy_refuses():
    """A block between the decision and its arrival counts: the newer table decides."""
    _lab, node, probe = deciding()
    older = node.table
    node.trust(_numbered(77), Tier.CORE, blocked=True)
    probe.end.handle(LinkAllowed(older))
    assert probe.goodbye == (Goodbye.BLOCKED, 4004)


def test_a_decision_nobody_waits_for_is_a_bug():
    _, node, probe = node_and_probe()
    for event in (LinkAllowed(node.table), LinkRefused(Goodbye.BYE)):
        with pytest.raises(LocalProtocolError, match="not waiting"):
            probe.end.session.handle(event, now=0.0, now_ms=0)


def test_answers_for_a_link_that_is_not_up_are_a_bug():
    _, _, probe = node_and_probe(welcome=False)
    with pytest.raises(LocalProtocolError, match="Welcoming"):
        probe.end.session.handle(BatchJudged(0, []), now=0.0, now_ms=0)


# --- the cipher ---


@pytest.mark.parametrize("fault", ["dropped", "doubled", "swapped", "changed", "replayed hello"])
def test_a_stream_that_is_tampered_with_ends_at_once(fault):
    """Frames dropped, doubled or swapped do not decrypt: 4401, without a word."""
    _, _, probe = node_and_probe()
    frames = [probe.seal(messages.Ping(number)) for number in range(3)]
    sent = {
        "dropped": frames[1:2],
        "doubled": [frames[0], frames[0]],
        "swapped": [frames[1], frames[0]],
        "changed": [frames[0][:-1] + bytes([frames[0][-1] ^ 1])],
        "replayed hello": [b"\x94\x01"],
    }[fault]
    for frame in sent:
        probe.end.inbox.append(frame)
    probe.lab.run()
    assert probe.end.ending.goodbye is Goodbye.DECRYPT
    assert probe.goodbye == (None, 4401)


def test_frames_at_the_limit_are_read_and_one_byte_more_ends_the_link():
    """256 KiB of ciphertext."""
    limit = Limits().frame_bytes
    for size, goodbye in ((limit, Goodbye.DECRYPT), (limit + 1, Goodbye.TOO_LARGE)):
        _, _, probe = node_and_probe()
        probe.end.handle(FrameArrived(bytes(size)))
        assert probe.end.ending.goodbye is goodbye


@pytest.mark.parametrize(("message", "final"), [("Ping", True), ("Bye", False), ("Want", True)])
def test_final_marks_a_goodbye_and_only_that(message, final):
    _, _, probe = node_and_probe()
    probe.send(SAMPLES[message], final=final)
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_nothing_is_read_after_a_goodbye():
    _, _, probe = node_and_probe()
    said = len(probe.end.said)
    probe.end.inbox.extend([probe.seal(SAMPLES["Bye"]), b"anything", b"more"])
    probe.lab.run()
    assert probe.end.ending.by_peer
    assert len(probe.end.said) == said
    assert probe.end.session.handle(FrameArrived(b"late"), now=0.0, now_ms=0) == []


# --- being alive ---


def test_silence_is_asked_about_after_ten_seconds_and_dead_after_thirty():
    """Encrypted Ping after 10 s without receiving; 30 s without a frame is dead."""
    lab, _, probe = node_and_probe()
    pings = len(probe.heard_of(messages.Ping))
    lab.pass_time(9.99)
    assert len(probe.heard_of(messages.Ping)) == pings
    lab.pass_time(0.01)
    assert len(probe.heard_of(messages.Ping)) == pings + 1
    lab.pass_time(19.99)
    assert probe.end.ending is None
    lab.pass_time(0.01)
    assert probe.end.ending.goodbye is Goodbye.DEAD
    assert probe.goodbye[1] == 4408


def test_any_frame_shows_life():
    lab, _, probe = node_and_probe()
    for _ in range(10):
        lab.pass_time(29.0)
        probe.send(EXTENSION)
    assert probe.end.ending is None


def test_pongs_measure_round_trip_and_clock_offset():
    lab, _, probe = node_and_probe()
    ping = probe.last(messages.Ping)
    lab.now += 0.2
    probe.send(messages.Pong(ping.clock, ping.clock + 5_000))
    assert probe.end.session.stats.rtt_ms == pytest.approx(200)
    assert probe.end.session.stats.clock_offset_ms == pytest.approx(4_900, abs=1)
    probe.send(messages.Pong(ping.clock, ping.clock))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_pings_without_pongs_do_not_pile_up():
    """A peer that speaks but never answers Pings costs eight entries, no more."""
    lab, _, probe = node_and_probe()
    for _ in range(50):
        lab.pass_time(11.0)
        probe.send(EXTENSION)
    assert len(probe.end.session._pings) == 8
    assert probe.end.ending is None


def test_each_wait_before_the_link_ends_by_itself():
    """Ten seconds for the handshake, and as much for the Welcome, whatever else the limits say."""
    lab = Lab(limits=Limits(handshake_s=12.0))
    node = lab.node()
    node.trust(_numbered(77), Tier.CORE)
    end = End(lab, node, dials=False)
    end.other = Lab().node  # never used
    assert end.session.deadline == lab.now + 12.0
    probe = Probe(lab, node, welcome=False)
    assert probe.end.session.deadline == lab.now + 12.0
    lab.now += 12.0
    assert end.session.handle(TimerFired(), now=lab.now, now_ms=0) == [EndLink(4400, Goodbye.DEAD, "the handshake took too long")]
    probe.end.handle(TimerFired())
    assert probe.goodbye == (None, 4408)


def test_waiting_for_the_shell_has_no_deadline():
    lab, _, probe = deciding()
    assert probe.end.session.deadline is None
    assert probe.end.session.handle(TimerFired(), now=lab.now + 100, now_ms=0) == []


def test_the_transport_closing_ends_every_state():
    lab = Lab()
    assert End(lab, lab.node(), dials=False).session.handle(TransportClosed(), now=0.0, now_ms=0) == [
        EndLink(1006, None, "the connection closed", by_peer=True)
    ]
    _, _, probe = node_and_probe()
    probe.end.inbox.append(TransportClosed(4001))
    probe.lab.run()
    assert probe.end.ending.close_code == 4001


def test_ending_a_link_says_goodbye_once_there_is_a_cipher():
    for probe in (node_and_probe()[2], node_and_probe(welcome=False)[2]):
        probe.end.handle(EndRequested(Goodbye.RESTARTING, "x" * 300))
        assert probe.goodbye == (Goodbye.RESTARTING, 4001)
        assert probe.last(messages.Bye).reason == "x" * 256
    _, _, probe = deciding()
    probe.end.handle(EndRequested(Goodbye.RESTARTING))
    assert probe.goodbye == (None, 4400)


def test_events_that_concern_only_a_live_link_pass_by_elsewhere():
    lab, node, probe = deciding()
    for event in (ReconcileNow(), PolicyChanged(node.table)):
        assert probe.end.session.handle(event, now=lab.now, now_ms=0) == []
    assert isinstance(probe.end.session.state, Deciding)


def test_connecting_is_the_first_state():
    lab = Lab()
    end = End(lab, lab.node(), dials=True)
    assert isinstance(end.session.state, Connecting)
    with pytest.raises(LocalProtocolError, match="not proven"):
        _ = end.session.peer_id


# --- queries, for now ---


def test_queries_are_answered_unsupported():
    _, _, probe = node_and_probe(Tier.EXTERNAL)
    for number in range(6):
        probe.send(replace_query(number))
    assert [(result.number, result.code) for result in probe.heard_of(messages.Result)] == [(n, "unsupported") for n in range(6)]


def replace_query(number):
    return messages.Query(number, None, None, None, None, None, None, None, None)


# --- what the operator changes ---


@pytest.mark.parametrize(
    ("tier", "blocked", "goodbye"),
    [(Tier.UNKNOWN, False, Goodbye.PENDING), (Tier.CORE, True, Goodbye.BLOCKED), (Tier.SANDBOX, True, Goodbye.BLOCKED)],
)
def test_a_peer_that_may_no_longer_link_is_told_at_once(tier, blocked, goodbye):
    for welcome in (True, False):
        _, node, probe = node_and_probe(welcome=welcome)
        node.trust(_numbered(77), tier, blocked=blocked)
        assert probe.goodbye == (goodbye, goodbye.close_code)


def test_links_of_a_revoked_key_close_at_once():
    """Also when the peer has another key that is trusted, or needs none."""
    for tier in (Tier.CORE, Tier.EXTERNAL):
        _, node, probe = node_and_probe(tier)
        pair = make_pair(77)
        revoked = replace(node.table.keys[pair.fingerprint], status=KeyStatus.REVOKED)
        node.set_table(replace(node.table, keys={**node.table.keys, pair.fingerprint: revoked}))
        assert probe.goodbye == (Goodbye.PENDING, 4003)


@pytest.mark.parametrize(
    ("before", "after"), [(Tier.SANDBOX, Tier.CORE), (Tier.EXTERNAL, Tier.SANDBOX), (Tier.EXTERNAL, Tier.CORE)]
)
def test_more_than_the_welcome_said_needs_a_new_link(before, after):
    _, node, probe = node_and_probe(before)
    node.trust(_numbered(77), after)
    assert probe.goodbye == (Goodbye.BYE, 4000)


@pytest.mark.parametrize("tiers", [(Tier.SANDBOX, Tier.CORE), (Tier.EXTERNAL, Tier.SANDBOX), (Tier.EXTERNAL, Tier.CORE)])
def test_a_demotion_and_its_undoing_happen_on_the_live_link(tiers):
    """Each change sends Interest anew and, after the first Interest, Scope too."""
    _, node, probe = node_and_probe()
    own = node.node_id
    probe.send(messages.Interest([(own, 0), (ORIGIN, 0)]))
    accepted = {Tier.CORE: {own, ORIGIN}, Tier.SANDBOX: {ORIGIN}, Tier.EXTERNAL: set()}
    offered = {Tier.CORE: {own, ORIGIN}, Tier.SANDBOX: set(), Tier.EXTERNAL: set()}
    for tier in tiers:
        count = len(probe.heard_of(messages.Interest)), len(probe.heard_of(messages.Scope))
        node.trust(_numbered(77), tier)
        assert (len(probe.heard_of(messages.Interest)), len(probe.heard_of(messages.Scope))) == (count[0] + 1, count[1] + 1)
        assert {row[0] for row in probe.last(messages.Interest).rows} == accepted[tier]
        assert {row[0] for row in probe.last(messages.Scope).rows} == offered[tier]
    assert probe.goodbye == (None, None)


def test_without_an_interest_a_change_of_policy_sends_no_scope():
    _, node, probe = node_and_probe()
    node.trust(_numbered(90), Tier.CORE)
    assert not probe.heard_of(messages.Scope)
    assert len(probe.heard_of(messages.Interest)) == 2


# --- the beginning ---


def test_both_sides_announce_the_link_and_interest_follows_the_welcomes():
    """Interest goes out if the peer's grants pull, also when nothing is acceptable; with no pull there is none."""
    for tier, rows in ((Tier.CORE, 2), (Tier.SANDBOX, 1), (Tier.EXTERNAL, 0)):
        _, _, probe = node_and_probe(tier)
        assert [type(message) for message in probe.heard[:2]] == [messages.Welcome, messages.Interest]
        assert len(probe.heard_of(messages.Interest)[0].rows) == rows
        _, _, probe = node_and_probe(tier, pull=False)
        assert not probe.heard_of(messages.Interest)


def test_a_peer_without_push_may_answer_each_interest_once():
    """Unasked, its Scope is a protocol error."""
    _, _, probe = node_and_probe(Tier.EXTERNAL)
    probe.send(messages.Scope([]))
    assert probe.goodbye == (None, None)
    probe.send(messages.Scope([]))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_who_takes_no_packets_is_offered_none():
    """The Interest of a peer that granted no push is answered, with an empty Scope."""
    _, node, probe = node_and_probe(push=False)
    node.publish(1)
    probe.send(messages.Interest([(node.node_id, 0)]))
    assert probe.last(messages.Scope).rows == []
    node.publish(2)
    probe.lab.run()
    assert not probe.heard_of(messages.Packets)


def test_the_window_is_the_smaller_of_both():
    """A Welcome may lower it to 256 packets and 192 KiB, and no further."""
    _, node, probe = node_and_probe(window=(256, 192 * 1024))
    for number in range(600):
        node.publish(number)
    probe.send(messages.Interest([(node.node_id, 0)]))
    for number in range(600, 1_200):
        node.publish(number)
    probe.lab.run()
    assert probe.end.linked.sender.in_flight[0] == 256
    for window in ((255, 192 * 1024), (256, 192 * 1024 - 1)):
        _, _, probe = node_and_probe(window=window)
        assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_lower_limits_of_the_operator_are_never_held_against_the_peer():
    """The protocol's numbers bind peers; an operator's lower ones only this node's own asking."""
    limits = Limits(wants=10, have_rows=5, batch_packets=3, reconcile_origins=2)
    _, node, probe = node_and_probe(limits=limits)
    probe.send(messages.Want([number.to_bytes(32) for number in range(1_024)]))
    probe.send(messages.Have([(ORIGIN, number.to_bytes(32)) for number in range(1_024)]))
    probe.packets(0, [make_envelope(77, number) for number in range(256)])
    assert probe.goodbye == (None, None)
    assert len(node.ids) == 256


def test_link_up_is_told_once():
    _lab, _, probe = node_and_probe(welcome=False)
    effects = probe.end.handle(FrameArrived(probe.seal(SAMPLES["Welcome"])))
    assert next(type(effect) for effect in effects) is LinkUp


def test_standing_without_key_cannot_link():
    """CORE without a trusted key stands as UNKNOWN."""
    lab = Lab()
    node = lab.node()
    node.set_table(replace(node.table, standings={ORIGIN: Standing(ORIGIN, Tier.CORE)}))
    assert Probe(lab, node).goodbye == (Goodbye.PENDING, 4003)
