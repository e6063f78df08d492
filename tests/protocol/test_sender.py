"""The sending half: scope, live delivery, Wants, windows, announcements, and a peer that does not play fair."""

import pytest

from federation.protocol import codec, messages
from federation.protocol.errors import Code, Goodbye
from federation.protocol.events import FeedAdvanced, FeedRead, FrameArrived, LoadManifest, ReadFeed
from federation.protocol.itemset import ItemSet
from federation.protocol.limits import Limits, reconcile_rounds
from federation.protocol.packet import packet_id_of
from federation.protocol.reconcile import Initiator
from peers.trust import Audience, KeyStatus, Tier
from tests.protocol.lab import Lab, Probe, make_envelope, make_local_cached

PEER = make_local_cached(77).node_id
IDS = [number.to_bytes(32) for number in range(3_000)]


class Named:
    def __init__(self, number):
        self.number = number
        self.node_id = make_local_cached(number).node_id


def setup(tier=Tier.CORE, *, interest=True, others=(), seed=0, **kwargs):
    """Return lab, node and a probe that asked for everything of the node, the others and itself."""
    lab = Lab(seed)
    node = lab.node()
    node.trust(Named(77), tier)
    for number in others:
        node.trust(Named(number), Tier.CORE)
    probe = Probe(lab, node, **kwargs)
    if interest:
        probe.send(messages.Interest([(origin, 0) for origin in origins(node, others)]))
    return lab, node, probe


def origins(node, others=()):
    return [node.node_id, PEER, *(make_local_cached(number).node_id for number in others)]


def sent_ids(probe):
    return [packet_id_of(codec.decode_row(row).body) for batch in probe.heard_of(messages.Packets) for row in batch.rows]


def gone_ids(probe):
    return [packet_id for batch in probe.heard_of(messages.Packets) for packet_id in batch.gone]


def ack_all(probe, code=Code.ACCEPTED):
    """Acknowledge batch after batch until none is open."""
    while probe.goodbye[0] is None:
        open_batches = set(probe.end.linked.sender._unacked)
        fresh = [batch for batch in probe.heard_of(messages.Packets) if batch.batch in open_batches]
        if not fresh:
            return
        probe.send(*(messages.Ack(batch.batch, [code] * len(batch.rows)) for batch in fresh))


# --- scope ---


def test_scope_answers_every_interest_with_what_policy_offers():
    """Own and CORE origins, also one the peer did not name; a SANDBOX origin stays out, and no Interest gets no offer."""
    _lab, node, probe = setup(others=[5], interest=False)
    node.trust(Named(6), Tier.SANDBOX)
    five, six = make_local_cached(5).node_id, make_local_cached(6).node_id
    node.publish(1)
    node.publish(2, audience=Audience.PRIVATE)
    probe.send(messages.Interest([(node.node_id, 7), (five, 0), (six, 0)]))
    scope = probe.last(messages.Scope).rows
    assert [(row[0], row[1]) for row in scope] == [(node.node_id, 1), (PEER, 0), (five, 0)]
    assert scope[0][2] == node.store.items(node.node_id).fingerprint()
    assert scope[0][3] == node.local.manifest.key_fingerprint
    probe.send(messages.Interest([]))
    assert probe.last(messages.Scope).rows == []
    assert len(probe.heard_of(messages.Scope)) == 2


def test_a_key_change_sends_scope_anew():
    """After a change of trust or key the peer gets a Scope it did not ask for."""
    _, node, probe = setup()
    node.trust(Named(5), Tier.CORE)
    assert len(probe.heard_of(messages.Scope)) == 2


# --- reconciliation ---


def test_an_origin_never_in_scope_is_a_protocol_error_and_one_that_left_gets_the_version_alone():
    _lab, node, probe = setup(others=[5])
    five = make_local_cached(5).node_id
    request = messages.Reconcile(five, messages.Role.REQUEST, Initiator(ItemSet(), split_seed=1).initiate())
    probe.send(request)
    node.trust(Named(5), Tier.SANDBOX)
    probe.send(request)
    assert [answer.frame for answer in probe.heard_of(messages.Reconcile)][1:] == [b"\x61"]
    probe.send(messages.Interest([(node.node_id, 0)]), request)
    assert probe.last(messages.Reconcile).frame == b"\x61"
    probe.send(messages.Reconcile(make_local_cached(9).node_id, messages.Role.REQUEST, b"\x61"))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_an_origin_of_the_first_scope_is_no_matter_of_the_interest_alone():
    """Asked for, but not offered: reconciling it is a protocol error."""
    _, node, probe = setup(interest=False)
    node.trust(Named(6), Tier.SANDBOX)
    six = make_local_cached(6).node_id
    probe.send(messages.Interest([(six, 0)]), messages.Reconcile(six, messages.Role.REQUEST, b"\x61"))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


@pytest.mark.parametrize("left", [False, True])
def test_a_frame_of_another_version_ends_the_link(left):
    _, node, probe = setup(others=[5])
    if left:
        node.trust(Named(5), Tier.SANDBOX)
    probe.send(messages.Reconcile(make_local_cached(5).node_id, messages.Role.REQUEST, b"\x62"))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


@pytest.mark.parametrize("count", [0, 249, 250, 1_000])
def test_rounds_are_counted_from_each_scope(count):
    """64 + n/250 requests, n the larger count of Interest and Scope; one more is `overrun`; a new Scope counts anew."""
    _, node, probe = setup(interest=False)
    most = reconcile_rounds(count)
    assert most == 64 + count // 250
    request = messages.Reconcile(node.node_id, messages.Role.REQUEST, b"\x61")
    for _ in range(2):
        probe.send(messages.Interest([(node.node_id, count)]))
        probe.send(*[request] * most)
        assert probe.goodbye == (None, None)
    probe.send(request)
    assert probe.goodbye == (Goodbye.OVERRUN, 4429)


def test_a_claimed_count_buys_rounds_for_four_million_packets_at_most():
    assert reconcile_rounds(2**22) == reconcile_rounds(2**53 - 1) == 64 + 2**22 // 250
    assert reconcile_rounds(2**22 - 250) == reconcile_rounds(2**22) - 1


# --- live ---


def test_live_begins_with_scope_and_leaves_out_what_the_scope_leaves_out():
    lab, node, probe = setup(interest=False, others=[5])
    before = node.publish(1)
    probe.send(messages.Interest([(node.node_id, 0)]))
    after = node.publish(2)
    node.publish(3, audience=Audience.PRIVATE)
    other = node.take(make_envelope(5, 1))  # not named in the Interest: the peer may decline it and say why
    lab.run()
    assert sent_ids(probe) == [after, other]
    assert before not in sent_ids(probe)


def test_nothing_goes_back_where_it_came_from():
    lab, node, probe = setup(others=[5])
    probe.packets(0, [make_envelope(5, 1), make_envelope(77, 1)])
    assert len(node.ids) == 2
    node.take(make_envelope(5, 2), received_from=PEER)  # long ago, and no longer among the ids the peer is known to have
    lab.run()
    assert sent_ids(probe) == []


def test_a_peer_known_to_have_a_packet_is_not_sent_it():
    """It announced it, or declined another copy as a duplicate."""
    lab, node, probe = setup(others=[5])
    envelope = make_envelope(5, 1)
    probe.send(messages.Have([(make_local_cached(5).node_id, packet_id_of(envelope.body))]))
    node.take(envelope)
    lab.run()
    assert sent_ids(probe) == []


def test_a_wiped_peer_gets_its_own_packets_from_others_live():
    lab, node, probe = setup(others=[5])
    packet_id = node.take(make_envelope(77, 1), received_from=make_local_cached(5).node_id)
    lab.run()
    assert sent_ids(probe) == [packet_id]


def test_a_feed_that_ends_before_its_head_is_not_read_for_ever():
    """The newest packets were hidden: the feed's end went back, and reading rests until something new comes."""
    lab, _node, probe = setup()
    effects = probe.end.session.handle(FeedAdvanced(5), now=lab.now, now_ms=0)
    assert effects == [ReadFeed(after=0, limit=512)]
    assert probe.end.session.handle(FeedRead([], 0), now=lab.now, now_ms=0) == []
    assert probe.end.session.handle(FeedAdvanced(6), now=lab.now, now_ms=0) == [ReadFeed(after=0, limit=512)]


# --- windows ---


def test_unacknowledged_packets_stay_within_512():
    """At the limit sending stops; each Ack frees what it covers; all arrive in the end, batches numbered from 0."""
    lab, node, probe = setup()
    for number in range(1_300):
        node.publish(number)
    lab.run()
    assert len(sent_ids(probe)) == 512
    assert probe.end.linked.sender.in_flight[0] == 512
    ack_all(probe)
    assert set(sent_ids(probe)) == node.ids
    assert [batch.batch for batch in probe.heard_of(messages.Packets)] == list(range(len(probe.heard_of(messages.Packets))))
    assert all(len(batch.rows) <= 256 for batch in probe.heard_of(messages.Packets))


def test_unacknowledged_bytes_stay_within_one_mebibyte():
    lab, node, probe = setup()
    for number in range(40):
        node.publish(number, size=60_000)
    lab.run()
    size = sum(len(codec.decode_row(row).body) for batch in probe.heard_of(messages.Packets) for row in batch.rows)
    assert probe.end.linked.sender.in_flight == (17, size)
    assert 1024 * 1024 - 60_500 < size <= 1024 * 1024
    for batch in probe.heard_of(messages.Packets):
        assert sum(map(codec.row_bytes, batch.rows)) <= 192 * 1024
    ack_all(probe)
    assert set(sent_ids(probe)) == node.ids


def test_a_live_backlog_waits_in_the_store():
    """10,000 packets behind, memory holds some hundred of them."""
    lab, node, probe = setup()
    for number in range(2_000):
        node.store.add(make_envelope(1, number), None)
    probe.end.answers.append(FeedAdvanced(node.store.head))
    lab.run()
    sender = probe.end.linked.sender
    assert len(sender._live) <= 768
    assert sender.backlog == 2_000 - 512
    ack_all(probe)
    assert len(sent_ids(probe)) == 2_000
    assert sender.backlog == 0


@pytest.mark.parametrize(
    "ack",
    [messages.Ack(1, [Code.ACCEPTED]), messages.Ack(0, []), messages.Ack(0, [Code.ACCEPTED, Code.ACCEPTED]), messages.Ack(7, [])],
    ids=["batch never sent", "too few codes", "too many codes", "empty, never sent"],
)
def test_an_ack_must_answer_an_open_batch(ack):
    _, node, probe = setup()
    node.publish(1)
    probe.send()
    probe.send(ack)
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_an_ack_comes_once():
    _, node, probe = setup()
    node.publish(1)
    probe.send()
    probe.send(messages.Ack(0, [Code.ACCEPTED]))
    assert probe.goodbye == (None, None)
    probe.send(messages.Ack(0, [Code.ACCEPTED]))
    assert probe.goodbye == (Goodbye.PROTOCOL, 4400)


def test_acks_may_come_in_any_order_and_with_any_code():
    lab, node, probe = setup()
    for number in range(3):
        node.publish(number)
        lab.run()
    probe.send(messages.Ack(2, [Code.BUSY]), messages.Ack(0, [Code.TIER]), messages.Ack(1, [Code.DUPLICATE]))
    assert probe.end.linked.sender.in_flight == (0, 0)
    assert probe.end.session.stats.outcomes_out == {"busy": 1, "tier": 1, "duplicate": 1}


# --- wants ---


def test_wanted_packets_are_sent_and_what_may_not_leave_is_gone():
    """Unknown, hidden, private, and of an origin that is not offered: all are `gone`, each answered once."""
    _lab, node, probe = setup(interest=False)
    node.trust(Named(6), Tier.SANDBOX)
    good = node.publish(1)
    hidden = node.publish(2)
    node.hide(hidden)
    private = node.publish(3, audience=Audience.PRIVATE)
    sandbox = node.take(make_envelope(6, 1))
    probe.send(messages.Interest([(node.node_id, 0)]), messages.Want([good, hidden, private, sandbox, IDS[9]]))
    assert sent_ids(probe) == [good]
    assert sorted(gone_ids(probe)) == sorted([hidden, private, sandbox, IDS[9]])
    assert len(probe.heard_of(messages.Packets)) == 1


def test_a_want_before_any_interest_is_answered_gone():
    """Nothing is in scope yet."""
    _, node, probe = setup(interest=False)
    packet_id = node.publish(1)
    probe.send(messages.Want([packet_id]))
    assert gone_ids(probe) == [packet_id]


def test_a_batch_of_nothing_but_gone_is_acknowledged_too():
    _, _, probe = setup()
    probe.send(messages.Want(IDS[:3]))
    assert [(batch.batch, batch.rows, batch.gone) for batch in probe.heard_of(messages.Packets)] == [(0, [], IDS[:3])]
    probe.send(messages.Ack(0, []))
    assert probe.end.linked.sender._unacked == {}


@pytest.mark.parametrize("beyond", [False, True])
def test_1024_wants_may_be_unanswered(beyond):
    """One more is `overrun`. Nothing is answered here because the store does not."""
    _lab, _, probe = setup()
    probe.end.questions = Silent()
    probe.send(messages.Want(IDS[:1_000]), messages.Want(IDS[1_000:1_024]))
    assert probe.goodbye == (None, None)
    if beyond:
        probe.send(messages.Want([IDS[1_024]]))
        assert probe.goodbye == (Goodbye.OVERRUN, 4429)


def test_one_want_of_1025_ids_is_overrun():
    _, _, probe = setup()
    probe.send(messages.Want(IDS[:1_025]))
    assert probe.goodbye == (Goodbye.OVERRUN, 4429)


class Silent:
    """Questions that nobody answers."""

    def append(self, question): ...

    def clear(self): ...

    def __bool__(self):
        return False


def test_an_id_queued_live_and_wanted_is_sent_once():
    lab, node, probe = setup()
    packet_id = node.publish(1)
    probe.end.inbox.append(probe.seal(messages.Want([packet_id])))
    lab.run()
    ack_all(probe)
    assert sent_ids(probe) == [packet_id]
    assert gone_ids(probe) == []


def test_an_id_unacknowledged_live_answers_its_want():
    """Whichever copy leaves first; after the Ack a Want is a new question."""
    _lab, node, probe = setup()
    packet_id = node.publish(1)
    probe.send()
    probe.send(messages.Want([packet_id]))
    assert sent_ids(probe) == [packet_id]
    ack_all(probe, Code.BUSY)
    probe.send(messages.Want([packet_id]))
    assert sent_ids(probe) == [packet_id] * 2


def test_asking_twice_for_one_id_is_answered_once():
    lab, node, probe = setup(interest=False)
    packet_id = node.publish(1)
    probe.send(messages.Interest([(node.node_id, 0)]))
    probe.end.inbox.extend([probe.seal(messages.Want([packet_id, packet_id])), probe.seal(messages.Want([packet_id]))])
    lab.run()
    assert sent_ids(probe) == [packet_id]


def test_a_peer_that_asks_and_never_acknowledges_gets_1024_batches():
    """Gone-only batches are outside the window: beyond the bound they wait, and the Want limit then ends the link."""
    _, _, probe = setup()
    for number in range(1_024):
        probe.send(messages.Want([IDS[number]]))
    assert len(probe.heard_of(messages.Packets)) == 1_024
    probe.send(messages.Want([IDS[1_024]]))
    assert len(probe.heard_of(messages.Packets)) == 1_024
    probe.send(messages.Ack(0, []))
    assert gone_ids(probe)[-1] == IDS[1_024]
    probe.send(messages.Want(IDS[1_100:2_100]))
    probe.send(messages.Want(IDS[2_100:2_125]))
    assert probe.goodbye == (Goodbye.OVERRUN, 4429)


def test_live_goes_before_wanted():
    lab, node, probe = setup(interest=False)
    old = [node.publish(number) for number in range(600)]
    probe.send(messages.Interest([(node.node_id, 0)]))
    probe.send(messages.Want(old))
    fresh = node.publish(1_000)
    lab.run()
    assert fresh not in sent_ids(probe)
    first = probe.heard_of(messages.Packets)[0]
    probe.send(messages.Ack(first.batch, [Code.ACCEPTED] * len(first.rows)))
    ack_all(probe)
    position = sent_ids(probe).index(fresh)
    assert position < 512 + 256, "at most the batch that was loaded goes before it"


# --- announcements ---


def test_announce_turns_live_packets_into_haves_within_20_ms():
    lab, node, probe = setup()
    probe.send(messages.Prefer(messages.Preference.ANNOUNCE))
    ids = [node.publish(number) for number in range(3)]
    lab.run()
    assert not probe.heard_of(messages.Have)
    lab.pass_time(0.019)
    assert not probe.heard_of(messages.Have)
    lab.pass_time(0.001)
    assert probe.last(messages.Have).rows == [(node.node_id, packet_id) for packet_id in ids]
    assert sent_ids(probe) == []


def test_a_have_holds_1024_rows():
    lab, node, probe = setup()
    probe.send(messages.Prefer(messages.Preference.ANNOUNCE))
    for number in range(1_025):
        node.publish(number)
    lab.run()
    assert [len(have.rows) for have in probe.heard_of(messages.Have)] == [1_024]
    lab.pass_time(0.02)
    assert [len(have.rows) for have in probe.heard_of(messages.Have)] == [1_024, 1]


def test_wanting_what_was_announced_restores_push_and_other_wants_do_not():
    lab, node, probe = setup(interest=False)
    old = node.publish(0)
    probe.send(messages.Interest([(node.node_id, 0)]), messages.Prefer(messages.Preference.ANNOUNCE))
    announced = node.publish(1)
    lab.pass_time(0.02)
    probe.send(messages.Want([old]))
    assert probe.end.linked.sender.is_announcing
    probe.send(messages.Want([announced]))
    assert not probe.end.linked.sender.is_announcing
    assert sent_ids(probe) == [old, announced]
    pushed = node.publish(2)
    lab.run()
    assert sent_ids(probe)[-1] == pushed


def relay(node, *numbers, author=5):
    """Packets of another origin arrive here from elsewhere; return their ids."""
    return [node.take(make_envelope(author, number), received_from=bytes(16)) for number in numbers]


def test_announce_after_an_ack_of_duplicates_means_their_origins_alone():
    """What came first from elsewhere goes on coming from there; another author's shortest way may be this link."""
    lab, node, probe = setup(others=(5,))
    [theirs] = relay(node, 0)
    lab.run()
    probe.send(messages.Ack(0, [Code.DUPLICATE]), messages.Prefer(messages.Preference.ANNOUNCE))
    own = node.publish(1)
    [announced] = relay(node, 2)
    lab.pass_time(0.02)
    assert sent_ids(probe) == [theirs, own]
    assert [packet_id for _, packet_id in probe.last(messages.Have).rows] == [announced]
    probe.send(messages.Want([announced]))
    [pushed] = relay(node, 3)
    lab.run()
    assert sent_ids(probe) == [theirs, own, announced, pushed]


def test_a_wanted_packet_that_was_there_already_came_not_in_vain():
    """The peer asked for it, so its wish for announcements is not about that origin, but about all."""
    lab, node, probe = setup(others=(5,), interest=False)
    [old] = relay(node, 0)
    probe.send(messages.Interest([(node.node_id, 0), (make_local_cached(5).node_id, 0)]), messages.Want([old]))
    probe.send(messages.Ack(0, [Code.DUPLICATE]), messages.Prefer(messages.Preference.ANNOUNCE))
    node.publish(1)
    lab.pass_time(0.02)
    assert sent_ids(probe) == [old]
    assert len(probe.last(messages.Have).rows) == 1


def test_push_takes_back_every_wish_for_announcements():
    lab, node, probe = setup(others=(5,))
    relay(node, 0)
    lab.run()
    probe.send(messages.Ack(0, [Code.DUPLICATE]), messages.Prefer(messages.Preference.ANNOUNCE))
    assert probe.end.linked.sender.is_announcing
    probe.send(messages.Prefer(messages.Preference.PUSH))
    assert not probe.end.linked.sender.is_announcing
    relay(node, 1)
    lab.run()
    assert len(sent_ids(probe)) == 2 and not probe.heard_of(messages.Have)


@pytest.mark.parametrize("seed", range(8))
def test_a_preference_in_mid_load_loses_and_doubles_nothing(seed):
    """Each live packet goes out exactly once, whole or announced, whenever the peer changes its mind."""
    lab, node, probe = setup(seed=seed)
    ids = []
    for number in range(60):
        ids.append(node.publish(number))
        mode = messages.Preference.ANNOUNCE if number % 7 < 3 else messages.Preference.PUSH
        probe.end.inbox.append(probe.seal(messages.Prefer(mode)))
        for _ in range(number % 5):
            lab.step()
    lab.pass_time(0.05)
    announced = [packet_id for have in probe.heard_of(messages.Have) for _, packet_id in have.rows]
    assert sorted(sent_ids(probe) + announced) == sorted(ids)


# --- manifests ---


def test_manifests_of_origins_the_peer_may_see_and_no_others():
    """The node's own, a CORE origin's, and to an EXTERNAL peer too, for it may query; nobody else is named."""
    for tier in (Tier.CORE, Tier.SANDBOX, Tier.EXTERNAL):
        lab = Lab()
        node, core, sandbox, unknown = (lab.node() for _ in range(4))
        node.trust(Named(77), tier)
        node.trust(core, Tier.CORE)
        node.trust(sandbox, Tier.SANDBOX)
        node.trust(unknown, Tier.UNKNOWN, key_status=KeyStatus.UNCONFIRMED)
        probe = Probe(lab, node)
        for asked in (node, core, sandbox, unknown):
            probe.send(messages.GetManifest(asked.node_id))
        told = [manifest.signed is not None for manifest in probe.heard_of(messages.Manifest)]
        assert told == [True, True, False, False]


@pytest.mark.parametrize("beyond", [False, True])
def test_2048_manifests_may_be_asked_for_at_once(beyond):
    """They are loaded one after the other; one more than a Scope could name is `overrun`."""
    _, _, probe = setup()
    questions = probe.end.questions = Kept()
    probe.send(*[messages.GetManifest(PEER)] * (2_048 + beyond))
    assert len([question for question in questions if isinstance(question, LoadManifest)]) <= 1
    assert probe.goodbye == ((Goodbye.OVERRUN, 4429) if beyond else (None, None))


class Kept(list):
    """Questions that are kept and not answered."""

    def __bool__(self):
        return False


# --- policy ---


def test_a_peer_that_takes_nothing_gets_no_scope_it_did_not_ask_for():
    """Its Welcome granted no push, so a Scope unasked would be a protocol error; its Interest is answered with none."""
    _lab, node, probe = setup(push=False)
    assert [scope.rows for scope in probe.heard_of(messages.Scope)] == [[]]
    node.trust(Named(6), Tier.CORE)
    node.publish(1)
    assert len(probe.heard_of(messages.Scope)) == 1
    assert probe.goodbye == (None, None)


def test_what_was_loaded_before_a_packet_was_hidden_does_not_leave():
    """The window is full, bodies are loaded and wait; then the operator hides one of them."""
    lab, node, probe = setup()
    for number in range(40):
        node.publish(number, size=60_000)
    lab.run()
    waiting = [packet_id for packet_id, _ in probe.end.linked.sender._loaded]
    assert waiting
    node.hide(waiting[0])
    ack_all(probe)
    assert waiting[0] not in sent_ids(probe)
    assert set(sent_ids(probe)) == node.ids - {waiting[0]}


@pytest.mark.parametrize("seed", range(10))
def test_hiding_at_any_moment_is_kept(seed):
    """Reads and loads under way when a packet is hidden are done again; the lab checks what leaves."""
    lab, node, probe = setup(seed=seed)
    announce = seed % 2
    if announce:
        probe.send(messages.Prefer(messages.Preference.ANNOUNCE))
    ids = []
    for number in range(30):
        ids.append(node.publish(number))
        for _ in range(lab.random.randrange(4)):
            lab.step()
        node.hide(lab.random.choice(ids))
    lab.pass_time(0.1)
    assert probe.goodbye == (None, None)


def test_what_waited_to_be_pushed_when_it_was_hidden_is_not_announced():
    """The window is full, live packets wait; one is hidden, and then the peer prefers announcements."""
    lab, node, probe = setup()
    for number in range(60):
        node.publish(number, size=60_000)
    lab.run()
    waiting = list(probe.end.linked.sender._live)
    assert waiting
    node.hide(waiting[-1])
    probe.send(messages.Prefer(messages.Preference.ANNOUNCE))
    lab.pass_time(0.02)
    assert waiting[-1] not in [packet_id for have in probe.heard_of(messages.Have) for _, packet_id in have.rows]


def answer_one_question(end):
    """The store answers, and the answer is still on its way."""
    end._ask()
    assert not end.questions and len(end.answers) == 1


def test_a_load_answered_before_a_packet_was_hidden_is_done_again():
    lab, node, probe = setup(interest=False)
    packet_id = node.publish(1)
    probe.send(messages.Interest([(node.node_id, 0)]))
    probe.end.handle(FrameArrived(probe.seal(messages.Want([packet_id]))))
    answer_one_question(probe.end)
    node.hide(packet_id)
    lab.run()
    assert (sent_ids(probe), gone_ids(probe)) == ([], [packet_id])


def test_a_read_of_the_feed_answered_before_a_packet_was_hidden_is_done_again():
    """Else a Have would name what is hidden."""
    lab, node, probe = setup()
    probe.send(messages.Prefer(messages.Preference.ANNOUNCE))
    packet_id, other = node.publish(1), node.publish(2)
    probe.end._answer()
    assert [type(question) for question in probe.end.questions] == [ReadFeed]
    probe.end.answers.clear()
    answer_one_question(probe.end)
    node.hide(packet_id)
    node.publish(3)
    lab.pass_time(0.1)
    announced = [packet_id for have in probe.heard_of(messages.Have) for _, packet_id in have.rows]
    assert packet_id not in announced
    assert other in announced


def test_wants_of_an_origin_that_left_the_scope_are_gone():
    _lab, node, probe = setup(others=[5], interest=False)
    ids = [node.take(make_envelope(5, number)) for number in range(600)]
    probe.send(messages.Interest([(make_local_cached(5).node_id, 0)]))
    probe.send(messages.Want(ids))
    node.trust(Named(5), Tier.SANDBOX)
    ack_all(probe)
    assert len(sent_ids(probe)) == 512
    assert sorted(sent_ids(probe) + gone_ids(probe)) == sorted(ids)


def test_limits_of_this_test_are_the_protocols():
    limits = Limits()
    assert (limits.window_packets, limits.window_bytes, limits.wants, limits.have_rows) == (512, 1024 * 1024, 1_024, 1_024)
