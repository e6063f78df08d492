"""The running node: which of two links stays, what a change of policy reloads, how it stops."""

import asyncio
import dataclasses
import random

import pytest
from django.db import OperationalError

from federation import claims, ledger, requests, services, state
from federation import node as node_module
from federation.models import KnowledgePacket, LinkClaim, NodeRequest, PeerCounter
from federation.protocol.errors import Goodbye
from federation.protocol.session import Linked
from keys.encoding import NodeId
from peers.models import Peer
from peers.services import set_tier
from peers.trust import Tier
from tests.federation.local_nodes import InlineDatabase, connect, make_identity, started, trust, until
from tests.federation.makers import make_received, node

pytestmark = [pytest.mark.asyncio, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def inline(monkeypatch, keys_dir):
    """The database on the spot, and no row of whose identity this installation is: two nodes share the tables."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    monkeypatch.setattr(node_module, "Database", InlineDatabase)
    monkeypatch.setattr(node_module, "register_identity", lambda identity: None)


async def two(*, tier=Tier.CORE):
    trust(1, 2, tier=tier)
    return await started(1), await started(2)


async def linked_pair():
    ada, bob = await two()
    near, far = connect(ada, bob)
    await until(lambda: near.settled.is_set() and far.settled.is_set())
    assert near.ending is None
    assert far.ending is None
    return ada, bob, near, far


async def stop(*nodes):
    await asyncio.gather(*(node.stop() for node in nodes))


async def cross_dial(ada, bob, seed):
    """Let both dial at nearly the same moment; return the drivers of both connections as (dialler, listener)."""
    chance = random.Random(seed)
    connections = []
    for dialler, listener in [(ada, bob), (bob, ada)]:
        connections.append(connect(dialler, listener, seed=seed * 2 + len(connections), slowest_s=chance.choice([0, 0.001, 0.01])))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.01)
    await until(lambda: all(driver.settled.is_set() for pair in connections for driver in pair))
    return connections


async def cross_dials(count):
    ada, bob = await two()
    lower = min((ada, bob), key=lambda node: node.identity.node_id)
    for seed in range(count):
        connections = await cross_dial(ada, bob, seed)
        await until(lambda c=connections: sum(any(driver.ending for driver in pair) for pair in c) == 1)
        await until(lambda: all(node.links and len(node.drivers) == 1 for node in (ada, bob)))
        (survivor,) = [pair for pair in connections if not any(driver.ending for driver in pair)]
        assert {*ada.links.values(), *bob.links.values()} == set(survivor), f"seed {seed}: both ends agree"
        assert survivor[0].session.peer_id == max(ada.identity.node_id, bob.identity.node_id), "the lower node_id's dial stays"
        assert lower.links[survivor[0].session.peer_id] is survivor[0]
        await survivor[0].end(Goodbye.BYE)
        await survivor[1].ended.wait()
        await until(lambda: not LinkClaim.objects.exists())
    await stop(ada, bob)


async def test_cross_dials_leave_one_link():
    """Of two links dialled at once exactly one survives, the same at both ends: the lower node_id's."""
    await cross_dials(40)


@pytest.mark.long
async def test_thousand_cross_dials_leave_one_link_each():
    """The same a thousand times."""
    await cross_dials(1_000)


async def test_one_key_dialling_again_and_again_has_one_link():
    """Of many links dialled by one side the newest stays, at both ends, and no trace of the others."""
    ada, bob = await two()
    for _ in range(30):
        connect(ada, bob)
        await asyncio.sleep(random.Random(0).random() * 0.002)
    await until(lambda: len(ada.drivers) == len(bob.drivers) == 1 and ada.links and bob.links)
    await until(lambda: LinkClaim.objects.count() == 2)
    await until(lambda: not ada.half_open() and not bob.half_open())
    await stop(ada, bob)


async def test_link_that_ended_while_it_was_claimed_leaves_nothing():
    """A connection lost between the proof and the claim is not taken for a link, and its claim is given back."""
    ada, bob = await two()
    near, far = connect(ada, bob)
    claimed = asyncio.Event()
    write = bob.database.write

    async def losing(function, *args, **kwargs):
        result = await write(function, *args, **kwargs)
        if function is claims.claim_link and not claimed.is_set():
            claimed.set()
            far.closed(None)
            await far.ended.wait()
        return result

    bob.database.write = losing
    await until(claimed.is_set)
    await until(lambda: not bob.links and not bob.drivers)
    near.closed(None)
    await until(lambda: not LinkClaim.objects.exists())
    await stop(ada, bob)


async def test_status_of_a_link_is_written_when_it_is_up_and_gone_when_it_ended():
    """Other processes see a link as soon as it is up, and no longer once it ended."""
    ada, bob, near, _ = await linked_pair()
    row = await until_row(lambda row: row.state, peer=bob.identity.node_id.hex())
    assert (row.state["direction"], row.state["behind"]) == ("out", 0)
    await near.end(Goodbye.BYE)
    await until(lambda: not LinkClaim.objects.exists(), 1)
    await stop(ada, bob)


async def until_row(predicate, **what):
    await until(lambda: (row := LinkClaim.objects.filter(**what).first()) is not None and predicate(row))
    return LinkClaim.objects.get(**what)


async def test_idle_node_writes_nothing(monkeypatch):
    """Linked and with nothing to do, a node writes only the sign of life of its claims."""
    ada, bob, *_ = await linked_pair()
    monkeypatch.setattr(ledger, "PERIOD_S", 0.01)
    await asyncio.sleep(1.2)
    ada.database.writes.clear()
    await asyncio.sleep(0.5)
    assert set(ada.database.writes) <= {"_write_down"}
    assert len(ada.database.writes) <= 1
    await stop(ada, bob)


async def test_change_of_trust_reloads_no_packets():
    """A change of trust is read at once and costs no look at the stored packets; hiding one does."""
    services.store_packets(received=[make_received(number, origin=2) for number in range(3)], quotas={})
    ada, bob, *_ = await linked_pair()
    origin = NodeId(node(2))
    assert ada.index.summary(origin)[0] == 3
    ada.database.reads.clear()
    set_tier(peer=Peer.objects.get(node_id=node(2).hex()), tier=Tier.SANDBOX, reason="", actor="test", door="command")
    await ada.look()
    assert ada.table.standing(origin).tier is Tier.SANDBOX
    assert "read_item_sets" not in ada.database.reads
    services.hide_packets([bytes(KnowledgePacket.objects.values_list("packet_id", flat=True)[0])])
    await ada.look()
    assert ada.database.reads.count("read_item_sets") == 1
    assert ada.index.summary(origin)[0] == 2
    await stop(ada, bob)


async def test_overlapping_reloads_end_with_the_newest_policy():
    """Of two reloads at once the one that read earlier does not have the last word."""
    ada, bob = await two()
    peer = Peer.objects.get(node_id=node(2).hex())
    reloads = [asyncio.ensure_future(ada.look())]
    for tier in (Tier.SANDBOX, Tier.CORE, Tier.EXTERNAL):
        set_tier(peer=Peer.objects.get(pk=peer.pk), tier=tier, reason="", actor="test", door="command")
        reloads.append(asyncio.ensure_future(ada.look()))
        await asyncio.sleep(0)
    await asyncio.gather(*reloads)
    assert ada.table.standing(NodeId(node(2))).tier is Tier.EXTERNAL
    await stop(ada, bob)


async def test_blocking_ends_the_link_at_once():
    """A peer that may not link any more is told so and gone within the look that notices."""
    ada, bob, near, far = await linked_pair()
    peer = Peer.objects.get(node_id=node(2).hex())
    set_tier(peer=peer, tier=Tier.UNKNOWN, reason="", actor="test", door="command")
    await ada.look()
    await until(lambda: not ada.links and not bob.links, 1)
    assert near.ending.goodbye is Goodbye.PENDING
    assert far.ending.goodbye is Goodbye.PENDING
    await stop(ada, bob)


async def test_stored_packets_are_fed_after_a_fault_of_the_database():
    """A read that fails once loses no wake-up: what was stored is taken in when the database answers again."""
    ada, bob = await two()
    services.store_packets(received=[make_received(1, origin=2)], quotas={})
    ada.database.broken = OperationalError("disk I/O error")
    ada._stored()
    await asyncio.sleep(0.05)
    ada.database.broken = None
    await until(lambda: ada.feed.head > 0, 3)
    await stop(ada, bob)


async def test_displaced_by_another_process_ends_here():
    """A claim that another process of this node took over ends the link in this one at the next look."""
    ada, bob, near, _ = await linked_pair()
    LinkClaim.objects.filter(peer=bob.identity.node_id.hex()).update(process="f" * 32, link="e" * 32)
    await ada.look()
    await until(lambda: near.ending is not None, 1)
    assert near.ending.goodbye is Goodbye.DUPLICATE
    await stop(ada, bob)
    assert LinkClaim.objects.filter(process="f" * 32).exists(), "the other process keeps its claim"


async def test_stop_says_goodbye_counts_and_releases():
    """A stopped node has told every peer, written its counters and given its claims back; nothing runs on."""
    ada, bob, _, far = await linked_pair()
    ada.ledger._pending["00" * 16, "received"] += 3
    await ada.stop()
    await until(lambda: far.ending is not None, 1)
    assert far.ending.goodbye is Goodbye.RESTARTING
    assert PeerCounter.objects.get(peer="00" * 16).count == 3
    assert not ada.drivers
    assert not ada.links
    assert not ada._background
    await bob.stop()
    assert not LinkClaim.objects.exists()
    names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
    assert not any("Node" in name or "Driver" in name or "supervise" in name for name in names), names


async def test_unreadable_request_stops_nothing():
    """A request row that makes no sense is passed over; the next one is answered."""
    ada, bob, *_ = await linked_pair()
    for argument in [{}, [], {"peer": 7}, {"peer": "zz"}, "text"]:
        NodeRequest.objects.create(kind=requests.SYNC, argument=argument)
    number = requests.ask(kind=requests.SYNC, argument={"peer": bob.identity.node_id.hex()})
    await ada.look()
    await until(lambda: NodeRequest.objects.get(pk=number).answer is not None)
    assert NodeRequest.objects.get(pk=number).answer["linked"]
    await stop(ada, bob)


async def test_full_node_takes_a_friend_in_place_of_a_visitor():
    """When all places are taken, an EXTERNAL peer's link gives way to a CORE peer's, never the other way round."""
    trust(1, 2, 3)
    trust(4, tier=Tier.EXTERNAL)
    ada, bob, cyd, dan = [await started(number) for number in (1, 2, 3, 4)]
    ada.limits = dataclasses.replace(ada.limits, links=1)
    dans, _ = connect(dan, ada)
    await until(lambda: ada.links and dans.settled.is_set())
    bobs, _ = connect(bob, ada)
    await until(lambda: NodeId(node(2)) in ada.links and dans.ending is not None)
    LinkClaim.objects.filter(peer=node(1).hex()).delete()  # Bob's; Cyd would file its own under the same id here
    cyds, _ = connect(cyd, ada)
    await until(lambda: cyds.ending is not None)
    assert (cyds.ending.goodbye, bobs.ending) == (Goodbye.BYE, None)
    assert isinstance(bobs.session.state, Linked)
    await stop(ada, bob, cyd, dan)


async def test_decision_waits_for_a_locked_database():
    """While the database does not answer, a peer waits for its Welcome; nothing is refused and nothing lost."""
    ada, bob = await two()
    bob.database.broken = OperationalError("database is locked")
    near, far = connect(ada, bob)
    await asyncio.sleep(0.1)
    assert far.ending is None
    bob.database.broken = None
    await until(lambda: near.settled.is_set() and near.ending is None and bob.links, 4)
    await stop(ada, bob)


async def test_visibility_counts_apart_from_trust():
    """Hiding moves both numbers, a decision about a peer only the policy's."""
    trust(2)
    before = state.visibility_revision()
    services.store_packets(received=[make_received(1, origin=2)], quotas={})
    services.hide_packets_from(node(2).hex(), own=node(1).hex())
    assert state.visibility_revision() == before + 1
    set_tier(peer=Peer.objects.get(), tier=Tier.SANDBOX, reason="", actor="test", door="command")
    assert state.visibility_revision() == before + 1


async def test_clock_far_off_is_said_once_a_link(caplog):
    """Thirty seconds are worth one warning while the link stands, a little less none."""
    ada = node_module.FederationNode(make_identity(1))
    near, far = make_identity(2).node_id, make_identity(3).node_id
    for _ in range(3):
        ada.ledger.warn_of_clocks({near: 29_999, far: -30_000})
    assert [record.getMessage() for record in caplog.records] == [
        f"the clock of {far.hex()[:8]} is -30 s off ours; one of the two is wrong"
    ]
    ada.ledger.warn_of_clocks({near: 0})
    ada.ledger.warn_of_clocks({far: -30_000})
    assert len(caplog.records) == 2
    await ada.database.close()


async def test_registry_says_how_a_peer_was_found():
    """Who answers at an address of the operator's is kept as the operator's; who just connects is a contact."""
    ada, bob = await started(1), await started(2)
    near, far = connect(ada, bob, found_by=Peer.FoundBy.STATIC)
    await until(lambda: near.ending is not None and far.ending is not None and Peer.objects.count() == 2)
    answered = Peer.objects.get(node_id=bob.identity.node_id.hex())
    connected = Peer.objects.get(node_id=ada.identity.node_id.hex())
    assert (answered.found_by, answered.touched) == ("static", True)
    assert (connected.found_by, connected.touched) == ("contact", False)
    await stop(ada, bob)
