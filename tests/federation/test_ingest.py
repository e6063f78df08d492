"""A received batch on its way to a judgement: real checks, real signatures, a real database."""

import dataclasses
import time

import pytest

from federation.committer import Committer
from federation.feed import Feed
from federation.index import OriginIndex
from federation.ingest import RATE_RETRY_S, Ingest
from federation.models import KnowledgePacket, PurgedPacket, Refusal
from federation.protocol.envelope import sign_packet
from federation.protocol.errors import Code
from federation.protocol.limits import Limits
from federation.protocol.packet import build_packet
from federation.verifier import VerifierPool
from peers.selectors import trust_table
from peers.trust import Tier
from tests.federation.local_nodes import InlineDatabase, make_identity, trust
from tests.identities import make_pair

pytestmark = [pytest.mark.asyncio, pytest.mark.django_db(transaction=True)]

OWN, PEER = 1, 2


@pytest.fixture(autouse=True)
def database_in_the_loop(monkeypatch):
    """InlineDatabase calls the database from the loop's own thread."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")


class CountingPool(VerifierPool):
    """The real pool, which also counts what it was asked to verify."""

    asked = 0

    async def verify(self, candidates):
        self.asked += len(candidates)
        return await super().verify(candidates)


class Bench:
    """One Ingest and all it stands on; `judge` takes envelopes as from the peer."""

    def __init__(self, tier, **limits):
        trust(PEER, tier=tier)
        self.identity = make_identity(OWN)
        self.table = trust_table(self.identity)
        self.peer = make_identity(PEER).node_id
        self.limits = dataclasses.replace(Limits(), **limits)
        database = InlineDatabase()
        self.database = database
        self.feed = Feed(database, OriginIndex(), advanced=lambda head: None)
        self.verifiers = CountingPool(workers=1)
        committer = Committer(database, quotas=lambda: self.ingest.quotas(), stored=lambda: None, stopped_changed=lambda: None)
        self.ingest = Ingest(
            database=database,
            committer=committer,
            feed=self.feed,
            verifiers=self.verifiers,
            limits=self.limits,
            table=lambda: self.table,
        )

    def envelope(self, number, *, created_at=None, stamped=None, bad=False):
        now_ms = time.time_ns() // 1_000_000
        packet = build_packet(
            origin=self.peer, kind="note", content={"n": number}, created_at=now_ms if created_at is None else created_at
        )
        envelope = sign_packet(make_pair(PEER), packet, timestamp=now_ms if stamped is None else stamped)
        return dataclasses.replace(envelope, signature=bytes(64)) if bad else envelope

    async def judge(self, *envelopes):
        try:
            return await self.ingest.judge(self.peer, envelopes)
        finally:
            await self.verifiers.close()


async def test_each_row_gets_its_own_judgement():
    """Good, bad, unreadable and known rows of one batch are told apart, and only the good ones are stored."""
    bench = Bench(Tier.CORE)
    good = [bench.envelope(number) for number in range(6)]
    assert [each.code for each in await bench.judge(good[0])] == [Code.ACCEPTED]
    judged = await bench.judge(good[0], None, bench.envelope(9, bad=True), *good[1:])
    assert [each.code for each in judged] == [Code.DUPLICATE, Code.MALFORMED, Code.BAD_SIGNATURE, *[Code.ACCEPTED] * 5]
    assert KnowledgePacket.objects.count() == 6
    row = KnowledgePacket.objects.order_by("arrival").first()
    assert (row.received_from, row.received_rule) == (bench.peer.hex(), "accept-core-own")
    assert bytes(row.body) == good[0].body
    assert [refusal.code for refusal in Refusal.objects.all()] == ["bad-signature"]


async def test_purged_packet_is_retracted_before_its_signature_is_looked_at():
    """What the operator purged is declined by its id alone."""
    bench = Bench(Tier.CORE)
    envelope = bench.envelope(1, bad=True)
    (known,) = await bench.judge(envelope)
    PurgedPacket.objects.create(packet_id=known.packet_id, origin=bench.peer.hex())
    bench.verifiers.asked = 0
    assert [each.code for each in await bench.judge(envelope)] == [Code.RETRACTED]
    assert bench.verifiers.asked == 0


@pytest.mark.parametrize("field", ["created_at", "stamped"])
async def test_early_packet_is_due_when_its_later_time_allows(field):
    """EARLY says when it may come again, by whichever of the two times is further ahead."""
    bench = Bench(Tier.CORE)
    ahead = time.time_ns() // 1_000_000 + 700_000
    (judged,) = await bench.judge(bench.envelope(1, **{field: ahead}))
    assert judged.code is Code.EARLY
    assert 95 < judged.due_in_s <= 100


async def test_rate_of_a_sandbox_origin():
    """Beyond its rate an origin's packets are declined for a second; beyond its room for good."""
    bench = Bench(Tier.SANDBOX, sandbox_packets_per_s=4.0, sandbox_packets=6)
    judged = await bench.judge(*(bench.envelope(number) for number in range(6)))
    assert [each.code for each in judged] == [*[Code.ACCEPTED] * 4, Code.QUOTA, Code.QUOTA]
    assert {each.due_in_s for each in judged[4:]} == {RATE_RETRY_S}
    bench.ingest._rates.clear()
    judged = await bench.judge(*(bench.envelope(number) for number in range(10, 13)))
    assert [each.code for each in judged] == [Code.ACCEPTED, Code.ACCEPTED, Code.QUOTA]
    assert judged[2].due_in_s == 0


@pytest.mark.parametrize(("tier", "verified"), [(Tier.SANDBOX, 20), (Tier.CORE, 100)])
async def test_bad_signatures_are_verified_up_to_the_budget(tier, verified):
    """A peer that is not CORE cannot make this node verify more than its budget of bad signatures."""
    bench = Bench(tier)
    judged = await bench.judge(*(bench.envelope(number, bad=True) for number in range(100)))
    assert bench.verifiers.asked == verified
    assert [each.code for each in judged] == [Code.BAD_SIGNATURE] * verified + [Code.BUSY] * (100 - verified)


async def test_decision_during_verification_counts():
    """Blocked while its signatures are verified, a peer's packets are declined."""
    bench = Bench(Tier.CORE)
    original = bench.verifiers.verify

    async def verify_and_block(candidates):
        outcomes = await original(candidates)
        standing = bench.table.standing(bench.peer)
        standings = {**bench.table.standings, bench.peer: dataclasses.replace(standing, blocked=True)}
        bench.table = dataclasses.replace(bench.table, standings=standings)
        return outcomes

    bench.verifiers.verify = verify_and_block
    assert [each.code for each in await bench.judge(bench.envelope(1))] == [Code.TIER]
    assert KnowledgePacket.objects.count() == 0
