"""Two and three nodes on links in memory: what is allowed arrives, what is not stays, whatever the order of events."""

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from federation.protocol import messages
from federation.protocol.errors import Goodbye
from federation.protocol.packet import packet_id_of
from federation.protocol.session import Linked
from peers.trust import Audience, Tier
from tests.protocol.lab import Lab, make_envelope
from tests.protocol.test_receiver import setup

TIERS = [Tier.CORE, Tier.SANDBOX, Tier.EXTERNAL, Tier.UNKNOWN]


def may_flow(giver, taker, stored):
    """Return whether both policies let a packet pass from one node to another."""
    return (
        giver.table.may_send(taker.node_id, stored.origin, stored.audience).allowed
        and taker.table.may_accept(giver.node_id, stored.origin, stored.audience).allowed
    )


def lacking(giver, taker):
    """Return the packets that should have passed from one node to another and did not."""
    hidden = giver.store.hidden
    return [
        packet_id
        for packet_id, stored in giver.store.envelopes.items()
        if packet_id not in hidden and packet_id not in taker.ids and may_flow(giver, taker, stored)
    ]


def is_joined(one, other):
    return any(end.is_up and end.session.peer_id == other.node_id for end in one.ends)


def mend(lab, nodes):
    """Link whoever may link, and give reconciliation its time: two Interests."""
    for one in nodes:
        for other in nodes:
            if one.number < other.number and not is_joined(one, other):
                lab.join(one, other)
    lab.pass_time(40)
    for node in nodes:
        node.busy = False
    lab.pass_time(1_500)
    lab.run()


# --- by example ---


def test_packets_published_before_and_after_the_link_arrive_both_ways():
    """Catch-up and live delivery together leave two CORE nodes with the same packets."""
    lab = Lab(1)
    a, b = lab.nodes_trusting(2)
    for number in range(300):
        a.publish(number)
        b.publish(1_000 + number)
    near, far = lab.join(a, b)
    assert len(a.ids) == 600
    a.publish(5_000)
    lab.run()
    assert a.ids == b.ids
    assert near.linked.receiver.is_settled and far.linked.receiver.is_settled


def test_each_packet_crosses_a_link_once():
    """No duplicate between two nodes, live or wanted, while both publish and reconcile."""
    for seed in range(5):
        lab = Lab(seed)
        a, b = lab.nodes_trusting(2)
        for number in range(200):
            a.publish(number)
        near, far = lab.connect(a, b)
        for number in range(200, 300):
            a.publish(number)
            for _ in range(5):
                lab.step()
        lab.run()
        assert len(b.ids) == 300
        assert far.session.stats.outcomes_in == {"accepted": 300}
        assert near.session.stats.packets_out == 300


def test_a_sandbox_peer_gives_its_own_and_gets_nothing():
    lab = Lab(2)
    a, b, c = (lab.node() for _ in range(3))
    a.trust(b, Tier.SANDBOX)
    a.trust(c, Tier.CORE)
    b.trust(a, Tier.CORE)
    c.trust(a, Tier.CORE)
    c.trust(b, Tier.CORE)
    own, others = b.publish(1), a.publish(2)
    lab.join(a, b)
    lab.join(a, c)
    assert a.ids == {own, others}
    assert b.ids == {own}
    assert c.ids == {others}, "a SANDBOX origin's packets stay where they were accepted"


def test_private_packets_stay():
    lab = Lab(3)
    a, b = lab.nodes_trusting(2)
    a.publish(1, audience=Audience.PRIVATE)
    lab.join(a, b)
    a.publish(2, audience=Audience.PRIVATE)
    lab.run()
    assert b.ids == set()


def test_a_chain_relays_and_a_wiped_node_gets_its_own_back():
    lab = Lab(4)
    a, b, c = lab.nodes_trusting(3)
    lab.join(a, b)
    lab.join(b, c)
    ids = {a.publish(number) for number in range(50)}
    lab.run()
    assert c.ids == ids
    for end in list(a.ends):
        lab.cut(end)
    a.store.__init__()
    lab.join(a, b)
    assert a.ids == ids


def test_a_relayed_packet_of_an_unknown_origin_is_declined_and_comes_with_the_key():
    """The last node of a chain has no key of the first: `unknown-origin`, and after the import it catches up."""
    lab = Lab(14)
    a, b, c = (lab.node() for _ in range(3))
    for one, other in ((a, b), (b, a), (b, c), (c, b)):
        one.trust(other, Tier.CORE)
    lab.join(a, b)
    near, _ = lab.join(c, b)
    packet_id = a.publish(1)
    lab.run()
    assert packet_id in b.ids and packet_id not in c.ids
    assert near.session.stats.outcomes_in == {"unknown-origin": 1}
    c.trust(a, Tier.CORE)
    lab.run()
    assert packet_id in c.ids


def test_a_triangle_turns_to_announcements_and_still_gets_everything():
    """Duplicates make links announce; every packet still reaches every node, each stored once."""
    lab = Lab(5)
    nodes = lab.nodes_trusting(3)
    for one, other in ((0, 1), (1, 2), (2, 0)):
        lab.join(nodes[one], nodes[other])
    ends = list(lab.ends)
    for number in range(100):
        nodes[number % 3].publish(number)
        lab.pass_time(0.05)
    lab.pass_time(1.0)
    assert all(len(node.ids) == 100 for node in nodes)
    assert any(end.linked.sender.is_announcing for end in ends)
    duplicates = sum(end.session.stats.outcomes_in.get("duplicate", 0) for end in ends)
    assert duplicates < 100, "a flood would make one duplicate a packet"


def test_a_demotion_stops_both_directions_and_its_undoing_brings_the_rest():
    """CORE to SANDBOX to CORE on one live link: what was published in between follows."""
    lab = Lab(6)
    a, b = lab.nodes_trusting(2)
    near, _ = lab.join(a, b)
    a.trust(b, Tier.SANDBOX)
    kept_back, own = a.publish(1), b.publish(2)
    lab.run()
    assert kept_back not in b.ids
    assert own in a.ids
    a.trust(b, Tier.CORE)
    lab.run()
    assert b.ids == a.ids == {kept_back, own}
    assert near.ending is None


def test_both_ends_agree_how_a_link_ended():
    lab = Lab(7)
    a, b = lab.nodes_trusting(2)
    near, far = lab.join(a, b)
    a.trust(b, Tier.CORE, blocked=True)
    lab.run()
    assert (near.ending.goodbye, near.ending.by_peer) == (Goodbye.BLOCKED, False)
    assert (far.ending.goodbye, far.ending.by_peer, far.ending.close_code) == (Goodbye.BLOCKED, True, 4004)


def test_packets_hidden_and_shown_again_follow_at_once():
    """Showing a packet again changes the set without a new arrival: the Scope tells."""
    lab = Lab(8)
    a, b = lab.nodes_trusting(2)
    packet_id = a.publish(1)
    a.hide(packet_id)
    lab.join(a, b)
    assert b.ids == set()
    row = a.store.rows[0]
    a.store.rows[0] = type(row)(row.arrival, row.packet_id, row.origin, row.audience, row.created_at, row.size, None)
    a.store.items(row.origin).add(row.created_at // 1000, packet_id)
    a.set_table(a.table)
    lab.run()
    assert b.ids == {packet_id}


def test_clocks_half_an_hour_apart_converge():
    """What is early is declined and comes when it is due."""
    lab = Lab(9)
    a, b = lab.nodes_trusting(2)
    a.offset_ms = 15 * 60_000
    b.offset_ms = -15 * 60_000
    lab.join(a, b)
    early = make_envelope(1, 1, ahead_ms=15 * 60_000)
    a.take(early)
    lab.run()
    assert b.ids == set()
    lab.pass_time(20 * 60 + 5)
    assert b.ids == {packet_id_of(early.body)}


def test_a_store_that_is_busy_for_a_while_loses_nothing():
    lab = Lab(10)
    a, b = lab.nodes_trusting(2)
    b.busy = True
    lab.join(a, b)
    for number in range(20):
        a.publish(number)
    lab.pass_time(17)
    assert b.ids == set()
    b.busy = False
    lab.pass_time(6)
    assert b.ids == a.ids


def test_large_packets_and_many_converge_within_the_windows():
    lab = Lab(11)
    a, b = lab.nodes_trusting(2)
    for number in range(60):
        a.publish(number, size=60_000)
    for number in range(60, 2_500):
        a.publish(number)
    lab.join(a, b)
    assert a.ids == b.ids


def test_traffic_falls_silent():
    """Two settled nodes exchange Pings and nothing else for minutes."""
    lab = Lab(12)
    a, b = lab.nodes_trusting(2)
    for number in range(10):
        a.publish(number)
    near, far = lab.join(a, b)
    lab.pass_time(5)
    counts = [len(end.said) for end in (near, far)]
    lab.pass_time(300)
    for end, count in zip((near, far), counts, strict=True):
        assert {type(message) for message in end.said[count:]} <= {messages.Ping, messages.Pong}


def test_announcements_of_a_bulk_are_found_by_reconciliation():
    """A peer in announce mode that gets 20,000 packets at once hears of all, in seconds."""
    lab = Lab(13)
    a, b = lab.nodes_trusting(2)
    near, _far = lab.join(a, b)
    near.linked.sender.prefer(messages.Prefer(messages.Preference.ANNOUNCE), lab.now)
    for number in range(3_000):
        a.store.add(make_envelope(1, number), None)
    a.publish(5_000)
    lab.pass_time(20)
    assert a.ids == b.ids


# --- whatever happens ---

PUBLISH, BURST, TRUST, CUT, JOIN, STEPS, TIME, HIDE, BUSY = range(9)
ACTIONS = st.lists(st.tuples(st.sampled_from(range(9)), st.integers(0, 2**16)), min_size=5, max_size=40)


def play(lab, nodes, actions, *, tiers):
    """Let the actions happen, with a random number of steps between them."""
    number = 0
    for action, chance in actions:
        node = nodes[chance % len(nodes)]
        other = nodes[(chance + 1 + chance // 7 % (len(nodes) - 1)) % len(nodes)]
        if action == PUBLISH:
            number += 1
            audience = [None, Audience.PUBLIC, Audience.PRIVATE][chance // 3 % 3]
            node.publish(number, audience=audience, size=[0, 0, 0, 30_000][chance // 9 % 4])
        elif action == BURST:
            for _ in range(chance % 90):
                number += 1
                node.publish(number)
        elif action == TRUST and tiers:
            node.trust(other, TIERS[chance // 5 % 4], blocked=chance % 11 == 0)
        elif action == CUT and node.ends:
            lab.cut(node.ends[chance % len(node.ends)])
        elif action == JOIN and not is_joined(node, other):
            lab.connect(node, other)
        elif action == TIME:
            lab.pass_time(chance % 50 / 10)
        elif action == HIDE and tiers and node.store.rows:
            node.hide(node.store.rows[chance % len(node.store.rows)].packet_id)
        elif action == BUSY:
            node.busy = chance % 2 == 0
        for _ in range(chance % 60):
            lab.step()


@pytest.mark.parametrize("count", [2, 3])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS, seed=st.integers(0, 2**32 - 1))
def test_nodes_that_trust_each_other_end_up_with_the_same_packets(count, actions, seed):
    """Random packets, order, cuts, reconnects and busy stores: then all CORE nodes hold all that may leave its node."""
    lab = Lab(seed)
    note(f"seed {seed}")
    nodes = lab.nodes_trusting(count)
    play(lab, nodes, actions, tiers=False)
    mend(lab, nodes)
    shared = {
        packet_id for node in nodes for packet_id, stored in node.store.envelopes.items() if stored.audience is not Audience.PRIVATE
    }
    for node in nodes:
        assert shared <= node.ids
        private = node.ids - shared
        assert all(node.store.envelopes[packet_id].origin == node.node_id for packet_id in private)


@pytest.mark.parametrize("count", [2, 3])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS, seed=st.integers(0, 2**32 - 1))
def test_what_both_policies_allow_arrives_and_nothing_else_leaves(count, actions, seed):
    """Tiers change at any moment too. The lab holds every frame against the policy of its moment; in the end each pair
    that may link holds what both policies let through, and no link lives that may not."""
    lab = Lab(seed)
    note(f"seed {seed}")
    nodes = [lab.node() for _ in range(count)]
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.trust(other, lab.random.choice(TIERS))
    play(lab, nodes, actions, tiers=True)
    mend(lab, nodes)
    mend(lab, nodes)  # grants that grew ended links in between
    for giver in nodes:
        for taker in nodes:
            if giver is taker:
                continue
            both = giver.table.may_link(taker.node_id).allowed and taker.table.may_link(giver.node_id).allowed
            assert is_joined(giver, taker) is both
            if both:
                assert lacking(giver, taker) == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(junk=st.lists(st.tuples(st.sampled_from(range(14)), st.integers(0, 2**16)), max_size=40), seed=st.integers(0, 2**32 - 1))
def test_a_peer_that_says_whatever_it_likes_raises_nothing(junk, seed):
    """Messages in any order, well-formed and wrong: the link goes on or ends with a code, within every bound."""
    lab, node, probe = setup(seed=seed, others=[5])
    packets = [make_envelope(77, number) for number in range(20)]
    batch = 0
    for kind, chance in junk:
        if probe.end.ending is not None:
            break
        origin = [node.node_id, probe.node_id, bytes(16)][chance % 3]
        some = packet_id_of(packets[chance % 20].body)
        if kind == 0:
            probe.packets(batch, packets[chance % 20 :][: chance % 7], [some] * (chance % 3))
            batch += 1
            continue
        probe.send(
            [
                messages.Interest([(origin, chance)]),
                messages.Scope([(origin, chance, bytes(16), bytes(32))]),
                messages.Want([some, bytes(32)]),
                messages.Have([(origin, some), (origin, bytes(32))]),
                messages.Prefer(messages.Preference.ANNOUNCE),
                messages.Reconcile(origin, messages.Role.ANSWER, b"\x61"),
                messages.Reconcile(origin, messages.Role.REQUEST, b"\x61\x00\x00\x01" + bytes(16)),
                messages.Ack(chance % 3, ["accepted"] * (chance % 4)),
                messages.GetManifest(origin),
                messages.Manifest(origin, None),
                messages.Ping(chance),
                messages.Query(chance, None, None, None, None, None, None, None, None),
                messages.Prefer(messages.Preference.PUSH),
            ][kind - 1]
        )
        node.publish(100_000 + batch + node.store.head)
        lab.pass_time(chance % 7 / 10)
    assert probe.end.ending is not None or isinstance(probe.end.session.state, Linked)
