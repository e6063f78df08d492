"""The live feed: in order, complete, and never back."""

import pytest

from federation import services
from federation.feed import BodyCache, Feed
from federation.index import OriginIndex
from federation.models import KnowledgePacket
from federation.protocol.events import StoredEnvelope
from keys.encoding import NodeId
from peers.trust import Audience
from tests.federation.local_nodes import InlineDatabase
from tests.federation.makers import make_received, make_verified, node

pytestmark = [pytest.mark.asyncio, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")


def store(*numbers):
    services.store_packets(received=[make_received(number) for number in numbers], quotas={})


async def make():
    heads = []
    index = OriginIndex()
    feed = Feed(InlineDatabase(), index, advanced=heads.append)
    await feed.load()
    return feed, index, heads


async def test_reads_on_from_any_number():
    """Whatever a link has seen, it is told everything after that, in order, and up to where."""
    store(*range(5))
    feed, index, heads = await make()
    store(*range(5, 12))
    await feed.advance()
    assert heads == [feed.head]
    everything = list(KnowledgePacket.objects.order_by("arrival").values_list("arrival", flat=True))
    for after in (0, *everything):
        rows, upto = await feed.read(after, 100)
        assert [row.arrival for row in rows] == [arrival for arrival in everything if arrival > after]
        assert upto == feed.head
        rows, upto = await feed.read(after, 3)
        assert upto == (rows[-1].arrival if len(rows) == 3 else feed.head)
    assert index.summary(NodeId(node(1)))[0] == 12


async def test_never_goes_back():
    """When the newest packets are purged and the catalogue is read anew, the head stays where it was."""
    feed, index, _ = await make()
    store(*range(6))
    await feed.advance()
    head = feed.head
    services.purge_packets_from(node(1).hex(), own=node(9).hex())
    await feed.load()
    assert feed.head == head
    assert index.summary(NodeId(node(1)))[0] == 0
    store(20)
    await feed.advance()
    rows, _ = await feed.read(head, 10)
    assert len(rows) == 1


async def test_hidden_bodies_are_forgotten_with_the_catalogue():
    """A body that was at hand is not handed out once the packet is hidden and the catalogue read anew."""
    feed, _, _ = await make()
    store(1)
    verified = make_verified(1)
    packet_id = verified.packet.packet_id
    feed.bodies.put(packet_id, StoredEnvelope(verified.envelope, NodeId(node(1)), Audience.CORE))
    assert (await feed.load_envelopes([packet_id], 10**6))[0][1] is not None
    services.hide_packets([packet_id])
    await feed.load()
    assert await feed.load_envelopes([packet_id], 10**6) == [(packet_id, None)]


async def test_bodies_are_bounded():
    """The newest bodies stay, up to so many bytes."""
    verified = [make_verified(number) for number in range(10)]
    size = len(verified[0].envelope.body)
    cache = BodyCache(3 * size)
    for each in verified:
        cache.put(each.packet.packet_id, StoredEnvelope(each.envelope, NodeId(node(1)), Audience.CORE))
    kept = [number for number, each in enumerate(verified) if cache.get(each.packet.packet_id) is not None]
    assert kept == [7, 8, 9]
