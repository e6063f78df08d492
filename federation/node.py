"""A running node: what all links of this process share, and what answers their questions.

The node owns the trust table, the feed with its catalogue, the committer and the registry of links. It reads
the registry anew when `PolicyRevision` moved and tells every link. Commands and the admin, in other processes,
change rows; the watcher notices within a tenth of a second (federation/wakeups.py).

The same node serves both deployments: inside `runfederation`, with a dialler and discovery, and under the plain
`daphne` command, where it answers inbound links only and is made by the first of them.

Source: docs/architecture.md, section 1; docs/protocol.md, sections 5, 6 and 9.
"""

import asyncio
import dataclasses
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from django.db import DatabaseError

from federation import claims, requests, selectors, services
from federation.cipher import SodiumSuite
from federation.claims import Claimant
from federation.committer import Committer
from federation.conf import limits as configured_limits
from federation.conf import own_manifest
from federation.database import Database
from federation.driver import LinkDriver, Transport
from federation.feed import Feed
from federation.index import OriginIndex
from federation.ingest import Ingest
from federation.protocol.errors import Code, Goodbye
from federation.protocol.events import (
    Authenticated,
    BatchJudged,
    Effect,
    EndLink,
    EnvelopesLoaded,
    Event,
    FeedAdvanced,
    FeedRead,
    FindMissing,
    JudgeBatch,
    LinkAllowed,
    LinkRefused,
    LoadEnvelopes,
    LoadManifest,
    ManifestArrived,
    ManifestLoaded,
    MissingFound,
    Penalise,
    PolicyChanged,
    ReadFeed,
    ReconcileNow,
)
from federation.protocol.fetches import FetchBoard
from federation.protocol.handshake import ClientHandshake, Local, ServerHandshake
from federation.protocol.manifest import ManifestError, SignedManifest, parse_manifest
from federation.protocol.recent import Refusals
from federation.protocol.session import Linked, PeerSession
from federation.verifier import VerifierPool
from federation.wakeups import Watcher
from keys.ed25519 import sign
from keys.encoding import NodeId
from keys.services import Identity, load_identity, register_identity
from peers.addresses import sync_url
from peers.encounters import Caps, Declared, ManifestRecord, note_clock_offset, note_contact, note_link
from peers.models import Peer
from peers.selectors import penalty_of, policy_revision, trust_table
from peers.services import start_penalty
from peers.trust import KeyStatus, Tier, TrustTable

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 1.0
REFRESH_S = 5.0


class FederationNode:
    """Everything the links of one process share. `start` before use, `stop` at the end."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.limits = configured_limits()
        self.process = secrets.token_hex(16)
        self.manifest = own_manifest(identity, issued_at=_now_ms())
        self.local = Local(
            node_id=identity.node_id,
            manifest=self.manifest,
            sign=lambda message: sign(identity.pair, message),
            network=self.manifest.manifest.network,
        )
        self.database = Database()
        self.index = OriginIndex()
        self.feed = Feed(self.database, self.index, advanced=self._feed_advanced)
        self.verifiers = VerifierPool()
        self.committer = Committer(self.database, quotas=lambda: self.ingest.quotas(), stored=self._stored)
        self.table = TrustTable(identity.node_id, {}, {})
        self.ingest = Ingest(
            database=self.database,
            committer=self.committer,
            feed=self.feed,
            verifiers=self.verifiers,
            limits=self.limits,
            table=lambda: self.table,
        )
        self.fetches = FetchBoard()
        self.links: dict[NodeId, LinkDriver] = {}
        self.drivers: dict[str, LinkDriver] = {}
        self.watcher = Watcher(self.look)
        # The runner's part, empty under plain daphne: who dials, and who handles what commands ask.
        self.table_changed: Callable[[], None] = lambda: None
        self.link_changed: Callable[[NodeId, EndLink | None], None] = lambda peer, ending: None
        self.asked: Callable[[], Awaitable[None]] | None = None
        self.stopping = False
        self._suite = SodiumSuite()
        self._refusals: dict[NodeId, Refusals] = {}
        self._tokens: dict[LinkDriver, str] = {}
        self._counted: dict[LinkDriver, Counter[str]] = {}
        self._pending_counts: Counter[tuple[str, str]] = Counter()
        self._advancing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._refreshed_at = 0.0

    # --- life ---

    async def start(self) -> None:
        """Load what is stored and begin to watch.

        Raises:
            DatabaseError: the database is not there or not migrated.
        """
        await self.database.write(register_identity, self.identity)
        self.table = await self.database.read(trust_table, self.identity)
        await self.feed.load()
        self._tasks = [
            asyncio.create_task(self.supervise("watcher", self.watcher.run)),
            asyncio.create_task(self.supervise("feed", self._advance)),
            asyncio.create_task(self.supervise("housekeeping", self._keep_house)),
        ]

    async def stop(self, goodbye: Goodbye = Goodbye.RESTARTING) -> None:
        """Say goodbye on every link, commit what is under way, and close."""
        self.stopping = True
        await asyncio.gather(*(driver.end(goodbye, "the node is stopping") for driver in list(self.drivers.values())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.committer.drain()
        await asyncio.gather(*self._background, return_exceptions=True)
        try:
            await self._flush_counters()
            await self.database.write(claims.release_process, process=self.process)
        except DatabaseError as error:
            logger.error("the last counters could not be written: %s", error)
        await self.verifiers.close()
        self.database.close()

    async def supervise(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run a task for ever: a failure is logged and the task started again a second later."""
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except DatabaseError as error:
                logger.warning("%s: the database does not answer, trying again: %s", name, error)
            except Exception:
                logger.exception("%s failed and is started again", name)
            await asyncio.sleep(1.0)

    def spawn(self, work: Awaitable[Any]) -> None:
        """Run something beside the links; its failure is logged."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Future[Any]) -> None:
        self._background.discard(task)  # type: ignore[arg-type]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%r", error, exc_info=error)

    # --- links ---

    def open_link(
        self, transport: Transport, *, address: str, host: str, dial: bool = False, expected: NodeId | None = None
    ) -> LinkDriver:
        """Return a started driver for a fresh WebSocket, dialled by this side or accepted."""
        seed = secrets.token_bytes(32)
        handshake = (
            ClientHandshake(self.local, self._suite, seed, expected) if dial else ServerHandshake(self.local, self._suite, seed)
        )
        session = PeerSession(
            handshake=handshake,
            table=self.table,
            limits=self.limits,
            catalogue=self,
            fetches=self.fetches,
            refusals=self._refusals_of,
            chance=random.SystemRandom().random,
            now=asyncio.get_running_loop().time(),
        )
        driver = LinkDriver(session, transport, self, address=address, host=host)
        token = secrets.token_hex(16)
        self.drivers[token] = driver
        self._tokens[driver] = token
        driver.start()
        return driver

    def half_open(self) -> list[LinkDriver]:
        """Return the drivers whose peer has not proven its key yet, oldest first."""
        return [driver for driver in self.drivers.values() if driver.session.peer is None]

    def _refusals_of(self, peer: NodeId) -> Refusals:
        return self._refusals.setdefault(peer, Refusals(self.limits.refusals_per_peer))

    # Catalogue, for the sessions.

    @property
    def head(self) -> int:
        return self.feed.head

    def summary(self, origin: NodeId) -> tuple[int, bytes]:
        return self.index.summary(origin)

    def items(self, origin: NodeId) -> Any:
        return self.index.items(origin)

    # --- answers to drivers ---

    async def answer(self, driver: LinkDriver, question: Effect) -> Event:
        match question:
            case JudgeBatch(batch, envelopes):
                return BatchJudged(batch, await self.ingest.judge(driver.session.peer_id, envelopes))
            case ReadFeed(after, limit):
                return FeedRead(*await self.feed.read(after, limit))
            case LoadEnvelopes(ids, max_bytes):
                return EnvelopesLoaded(await self.feed.load_envelopes(ids, max_bytes))
            case FindMissing(ids):
                known = await self.database.read(selectors.known_ids, ids)
                return MissingFound(asked=ids, missing=[packet_id for packet_id in ids if packet_id not in known])
            case LoadManifest(origin):
                return ManifestLoaded(origin, await self._manifest_of(origin))
            case Authenticated(manifest):
                return await self._decide(driver, manifest)
            case _:
                raise TypeError(f"no question: {question!r}")

    async def carry_out(self, driver: LinkDriver, effect: Effect) -> None:
        match effect:
            case ManifestArrived(signed):
                await self._note(signed, dialled=None, heard_at=None)
            case Penalise(reason):
                await self.database.write(start_penalty, node_id=driver.session.peer_id, reason=reason, now=_now())
            case _:
                raise TypeError(f"nothing to carry out: {effect!r}")

    def link_up(self, driver: LinkDriver) -> None:
        peer = driver.session.peer_id
        logger.info("linked with %s (%s)", peer.hex()[:8], driver.address)
        self.link_changed(peer, None)

    def link_ended(self, driver: LinkDriver, ending: EndLink) -> None:
        token = self._tokens.pop(driver)
        del self.drivers[token]
        peer = driver.session.peer
        who = "the peer" if ending.by_peer else "this node"
        name = driver.address if peer is None else f"{peer.node_id.hex()[:8]} ({driver.address})"
        level = logging.INFO if peer is not None else logging.DEBUG
        logger.log(level, "link with %s ended by %s: %s %s", name, who, ending.goodbye or ending.close_code, ending.reason)
        self._count(driver)
        self._counted.pop(driver, None)
        if peer is None:
            return
        if self.links.get(peer.node_id) is driver:
            del self.links[peer.node_id]
        self.spawn(self._release(token))
        self.link_changed(peer.node_id, ending)

    async def _release(self, token: str) -> None:
        await self.database.write(claims.release_claim, process=self.process, link=token)

    async def _decide(self, driver: LinkDriver, signed: SignedManifest) -> Event:
        """Register who proved its key, and say whether the link may stand."""
        dialled = driver.address if driver.session.is_dialler else None
        port = signed.manifest.sync_port
        heard_at = sync_url(driver.host, port) if dialled is None and port and driver.host else None
        await self._note(signed, dialled=dialled, heard_at=heard_at)
        await self._reload_policy()
        peer = signed.node_id
        decision = self.table.may_link(peer)
        if not decision.allowed:
            return LinkRefused(Goodbye(decision.code), decision.reason)
        key = self.table.keys.get(signed.key_fingerprint)
        if self.table.standing(peer).tier in (Tier.CORE, Tier.SANDBOX) and (key is None or key.status is not KeyStatus.TRUSTED):
            return LinkRefused(Goodbye.PENDING, "the operator has not confirmed this key yet")
        until = await self.database.read(penalty_of, peer, now=_now())
        if until is not None:
            return LinkRefused(Goodbye.PENALTY, f"refused until {until:%H:%M:%S} UTC")
        if len(self.links) >= self.limits.links and peer not in self.links:
            return LinkRefused(Goodbye.BYE, "this node has as many links as it may have")
        if self.stopping:
            return LinkRefused(Goodbye.RESTARTING, "the node is stopping")
        return await self._claim(driver, peer)

    async def _claim(self, driver: LinkDriver, peer: NodeId) -> Event:
        token = self._tokens.get(driver)
        if token is None:
            return LinkRefused(Goodbye.BYE)  # ended meanwhile; nobody reads this
        dialler = self.identity.node_id if driver.session.is_dialler else peer
        claimant = Claimant(peer=peer, process=self.process, link=token, dialler=dialler, address=driver.address)
        result = await self.database.write(claims.claim_link, claimant=claimant, now=_now())
        if not result.granted:
            return LinkRefused(Goodbye.DUPLICATE, "another link between us stays")
        earlier = self.links.get(peer)
        self.links[peer] = driver
        if earlier is not None and earlier is not driver:
            self.spawn(earlier.end(Goodbye.DUPLICATE, "another link between us stays"))
        return LinkAllowed(self.table)

    async def _note(self, signed: SignedManifest, *, dialled: str | None, heard_at: str | None) -> None:
        await self.database.write(
            note_contact,
            node_id=signed.node_id,
            chain=signed.chain.keys,
            declared=declared_of(signed),
            manifest=record_of(signed),
            now=_now(),
            dialled=dialled,
            heard_at=heard_at,
            caps=Caps(
                strangers=self.limits.unknown_peers,
                strangers_per_address=self.limits.unknown_peers_per_address,
                candidates=self.limits.addresses_per_peer,
            ),
        )

    async def _manifest_of(self, origin: NodeId) -> SignedManifest | None:
        if origin == self.identity.node_id:
            return self.manifest
        return await self.database.read(_stored_manifest, origin)

    # --- the store and the policy move ---

    def _stored(self) -> None:
        self._advancing.set()

    async def _advance(self) -> None:
        while True:
            await self._advancing.wait()
            self._advancing.clear()
            await self.feed.advance()

    def _feed_advanced(self, head: int) -> None:
        for driver in self.links.values():
            driver.post(FeedAdvanced(head))

    async def look(self) -> None:
        """Take in what any process of this node changed: policy, packets, requests."""
        await self._reload_policy()
        self._advancing.set()
        await self._answer_requests()
        if self.asked is not None:
            await self.asked()

    async def _reload_policy(self) -> None:
        if await self.database.read(policy_revision) == self.table.revision:
            return
        table = await self.database.read(trust_table, self.identity)
        if table.revision == self.table.revision:
            return
        await self.feed.load()
        self.table = table
        for refusals in self._refusals.values():
            refusals.clear()
        for driver in list(self.links.values()):
            driver.post(PolicyChanged(table))
        self.table_changed()

    # --- what commands ask of the links here ---

    async def _answer_requests(self) -> None:
        for request in await self.database.read(requests.waiting, kind=requests.SYNC):
            peer = NodeId(bytes.fromhex(request.argument["peer"]))
            if peer in self.links and await self.database.write(requests.take, pk=request.pk):
                self.spawn(self.sync_now(peer, request.pk, None))

    async def sync_now(self, peer: NodeId, request: int, problem: str | None) -> None:
        """Reconcile with a peer now and answer the request; `problem`: why there is no link, if there is none."""
        driver = self.links.get(peer)
        if driver is None:
            answer: dict[str, Any] = {"linked": False, "problem": problem or "the link ended"}
            await self.database.write(requests.answer, pk=request, answer=answer)
            return
        before = driver.session.stats.outcomes_in.get("accepted", 0)
        driver.post(ReconcileNow())
        deadline = asyncio.get_running_loop().time() + requests.PATIENCE_S
        settled = False
        await asyncio.sleep(0.05)
        while not settled and driver.ending is None and asyncio.get_running_loop().time() < deadline:
            state = driver.session.state
            settled = isinstance(state, Linked) and state.receiver.is_settled
            await asyncio.sleep(0.05)
        received = driver.session.stats.outcomes_in.get("accepted", 0) - before
        answer = {"linked": driver.ending is None, "settled": settled, "received": received}
        await self.database.write(requests.answer, pk=request, answer=answer)

    # --- housekeeping ---

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            for driver in list(self.drivers.values()):
                self._count(driver)
            await self._flush_counters()
            now = asyncio.get_running_loop().time()
            if now - self._refreshed_at >= REFRESH_S:
                self._refreshed_at = now
                await self._refresh()

    async def _refresh(self) -> None:
        states = {self._tokens[driver]: describe(driver) for driver in self.links.values() if driver in self._tokens}
        if not states:
            return
        lost = await self.database.write(claims.refresh_claims, process=self.process, states=states, now=_now())
        for token in lost:
            if token in self.drivers:
                self.spawn(self.drivers[token].end(Goodbye.DUPLICATE, "another process of this node has the link"))
        await self.database.write(note_link, node_ids=list(self.links), now=_now())
        for peer, driver in list(self.links.items()):
            if driver.session.stats.clock_offset_ms is not None:
                await self.database.write(note_clock_offset, node_id=peer, offset_ms=driver.session.stats.clock_offset_ms)

    def _count(self, driver: LinkDriver) -> None:
        if driver.session.peer is None:
            return
        totals = _totals(driver)
        seen = self._counted.get(driver, Counter())
        peer = driver.session.peer_id.hex()
        for name, count in (totals - seen).items():
            self._pending_counts[peer, name] += count
        self._counted[driver] = totals

    async def _flush_counters(self) -> None:
        if not self._pending_counts:
            return
        counts, self._pending_counts = self._pending_counts, Counter()
        try:
            await self.database.write(services.add_counters, counts)
        except DatabaseError:
            self._pending_counts.update(counts)
            raise


def load_node() -> FederationNode:
    """Return a node from the keys folder, not started.

    Raises:
        KeyFileError: no key, or a damaged one; the message says what to do.
    """
    return FederationNode(load_identity())


def declared_of(signed: SignedManifest) -> Declared:
    """Return what a peer says of itself, as the registry shows it."""
    manifest = signed.manifest
    return Declared(
        name=manifest.name,
        tier=manifest.trust_tier or "",
        capabilities=manifest.capabilities,
        version=manifest.version or "",
    )


def record_of(signed: SignedManifest) -> ManifestRecord:
    return ManifestRecord(signed.body, signed.signature, signed.manifest.issued_at)


def describe(driver: LinkDriver) -> Mapping[str, Any]:
    """Return what federationstatus shows of a link."""
    session = driver.session
    state: dict[str, Any] = {"direction": "out" if session.is_dialler else "in", **dataclasses.asdict(session.stats)}
    if isinstance(session.state, Linked):
        sender, receiver = session.state.sender, session.state.receiver
        state |= {
            "window_out": sender.in_flight,
            "window_in": receiver.in_flight,
            "behind": sender.backlog,
            "missing": receiver.missing,
            "announcing": sender.is_announcing,
        }
    return state


def _totals(driver: LinkDriver) -> Counter[str]:
    stats = driver.session.stats
    totals: Counter[str] = Counter()
    totals["sent"] = stats.packets_out
    for code, count in stats.outcomes_in.items():
        totals[_counter_name(Code(code))] += count
    for code, count in stats.outcomes_out.items():
        if code not in ("accepted", "duplicate"):
            totals[f"refused.{code}"] += count
    return totals


def _counter_name(code: Code) -> str:
    if code is Code.ACCEPTED:
        return "received"
    if code is Code.DUPLICATE:
        return "duplicate"
    return f"{'rejected' if code.is_rejection else 'declined'}.{code}"


def _stored_manifest(origin: NodeId) -> SignedManifest | None:
    row = Peer.objects.filter(node_id=origin.hex(), manifest__isnull=False).values_list("manifest", "manifest_signature").first()
    if row is None:
        return None
    try:
        return parse_manifest(bytes(row[0] or b""), bytes(row[1] or b""))
    except ManifestError:
        return None


def _now() -> datetime:
    return datetime.now(UTC)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
