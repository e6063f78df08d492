"""A running node: what all links of this process share, and what answers their questions.

The node owns the trust table, the feed with its catalogue, the committer and the registry of links. It reads
the registry anew when `PolicyRevision` moved and tells every link. Commands and the admin, in other processes,
change rows; the watcher notices within a tenth of a second (federation/wakeups.py).

The same node serves both deployments: inside `runfederation`, with a dialler and discovery, and under the plain
`daphne` command, where it answers inbound links only and is made by the first of them.

Source: docs/architecture.md, section 1; docs/protocol.md, sections 5, 6 and 9.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from django.db import DatabaseError

from federation import claims, requests, selectors, state
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
from federation.ledger import Ledger
from federation.protocol.errors import Goodbye
from federation.protocol.events import (
    Authenticated,
    BatchJudged,
    Effect,
    EndLink,
    EndRequested,
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
from peers.encounters import Caps, Declared, ManifestRecord, note_contact
from peers.errors import AddressError
from peers.models import Peer
from peers.selectors import penalty_of, policy_revision, trust_table
from peers.services import start_penalty
from peers.trust import KeyStatus, Tier, TrustTable

logger = logging.getLogger(__name__)

LINK_WAIT_S = 3.0  # for a link to be up whose claim stands already
LEFTOVERS_S = 0.5  # at the stop: for batches under judgement to be stored, though nobody hears of it any more


class FederationNode:
    """Everything the links of one process share. `start` before use, `stop` at the end."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.limits = configured_limits()
        self.process = claims.process_token()
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
        self.committer = Committer(
            self.database,
            quotas=lambda: self.ingest.quotas(),
            stored=self._stored,
            stopped_changed=lambda: self.stopped_changed(self.committer.stopped),
        )
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
        self.stopped_changed: Callable[[str | None], None] = lambda reason: None
        self.asked: Callable[[], Awaitable[None]] | None = None
        self.stopping = False
        self._suite = SodiumSuite()
        self._refusals: dict[NodeId, Refusals] = {}
        self._tokens: dict[LinkDriver, str] = {}
        self._advancing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._policy = asyncio.Lock()
        self._visibility = 0
        self.ledger = Ledger(self.database, process=self.process, drivers=lambda: self.drivers, links=lambda: self.links)

    # --- life ---

    async def start(self) -> None:
        """Load what is stored and begin to watch.

        Raises:
            DatabaseError: the database is not there or not migrated.
        """
        await self.database.write(register_identity, self.identity)
        self._visibility = await self.database.read(state.visibility_revision)
        self.table = await self.database.read(trust_table, self.identity)
        await self.feed.load()
        self._tasks = [
            asyncio.create_task(self.supervise("watcher", self.watcher.run)),
            asyncio.create_task(self.supervise("feed", self._advance)),
            asyncio.create_task(self.supervise("ledger", self.ledger.run)),
        ]

    async def stop(self, goodbye: Goodbye = Goodbye.RESTARTING) -> None:
        """Say goodbye on every link, commit what is under way, and close. A second call returns at once."""
        if self.stopping:
            return
        self.stopping = True
        # The goodbyes first: whatever the database does, the peers know.
        await asyncio.gather(*(driver.end(goodbye, "the node is stopping") for driver in list(self.drivers.values())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._background:
            await asyncio.wait(self._background, timeout=LEFTOVERS_S)
        while self._background:
            for task in list(self._background):
                task.cancel()
            await asyncio.wait(self._background)
        await self.verifiers.close()
        await self.committer.drain()
        try:
            await self.ledger.flush()
            await self.database.write(claims.release_process, process=self.process)
        except DatabaseError as error:
            logger.error("the last counters could not be written: %s", error)

    async def close(self) -> None:
        """Close the database; the last thing, after `stop`."""
        await self.database.close()

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

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the links; its failure is logged."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, DatabaseError):
                logger.warning("the database does not answer, something was left undone: %s", error)
            else:
                logger.error("%r", error, exc_info=error)

    # --- links ---

    def open_link(
        self,
        transport: Transport,
        *,
        address: str,
        host: str,
        dial: bool = False,
        expected: NodeId | None = None,
        found_by: Peer.FoundBy = Peer.FoundBy.CONTACT,
    ) -> LinkDriver:
        """Return a started driver for a fresh WebSocket, dialled by this side or accepted.

        Args:
            found_by: How the address came here, for the registry if the peer is new.
        """
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
        driver = LinkDriver(session, transport, self, address=address, host=host, found_by=found_by)
        token = secrets.token_hex(16)
        self.drivers[token] = driver
        self._tokens[driver] = token
        driver.start()
        return driver

    def half_open(self) -> list[LinkDriver]:
        """Return the inbound links that are not up yet, oldest first."""
        return [driver for driver in self.drivers.values() if not driver.session.is_dialler and not driver.settled.is_set()]

    def strangers_from(self, host: str) -> int:
        """Return how many inbound links from this address are not, or not yet, those of a CORE or SANDBOX peer."""
        inbound = [driver for driver in self.drivers.values() if not driver.session.is_dialler and driver.host == host]
        return sum(not (driver.settled.is_set() and self._is_friend(driver.session.peer_id)) for driver in inbound)

    def _is_friend(self, peer: NodeId) -> bool:
        return self.table.standing(peer).tier in (Tier.CORE, Tier.SANDBOX)

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
        token = self._tokens.get(driver)
        if token is not None:
            self.spawn(self.ledger.show(token, driver))
        self.link_changed(peer, None)

    def link_ended(self, driver: LinkDriver, ending: EndLink) -> None:
        token = self._tokens.pop(driver)
        del self.drivers[token]
        peer = driver.session.peer
        who = "the peer" if ending.by_peer else "this node"
        name = driver.address if peer is None else f"{peer.node_id.hex()[:8]} ({driver.address})"
        level = logging.INFO if peer is not None else logging.DEBUG
        logger.log(level, "link with %s ended by %s: %s %s", name, who, ending.goodbye or ending.close_code, ending.reason)
        self.ledger.ended(token, driver)
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
        await self._note(signed, dialled=dialled, heard_at=_heard_at(driver, signed), found_by=driver.found_by)
        await self._reload_policy()
        peer = signed.node_id
        decision = self.table.may_link(peer)
        if not decision.allowed:
            return LinkRefused(Goodbye(decision.code), decision.reason)
        key = self.table.keys.get(signed.key_fingerprint)
        if self._is_friend(peer) and (key is None or key.status is not KeyStatus.TRUSTED):
            return LinkRefused(Goodbye.PENDING, "the operator has not confirmed this key yet")
        until = await self.database.read(penalty_of, peer, now=_now())
        if until is not None:
            return LinkRefused(Goodbye.PENALTY, f"refused until {until:%H:%M:%S} UTC")
        if len(self.links) >= self.limits.links and peer not in self.links and not self._give_way_to(peer):
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
        if driver.ending is not None:
            # It ended while the claim was written; the claim is given back by then, for the writer keeps the order.
            return LinkRefused(Goodbye.BYE)
        if not result.granted:
            return LinkRefused(Goodbye.DUPLICATE, "another link between us stays")
        earlier = self.links.get(peer)
        self.links[peer] = driver
        if earlier is not None and earlier is not driver:
            self.spawn(earlier.end(Goodbye.DUPLICATE, "another link between us stays"))
        return LinkAllowed(self.table)

    def _give_way_to(self, peer: NodeId) -> bool:
        """End the oldest link with an EXTERNAL peer, if a friend wants its place and there is one."""
        if not self._is_friend(peer):
            return False
        oldest = next((driver for other, driver in self.links.items() if not self._is_friend(other)), None)
        if oldest is None:
            return False
        oldest.post(EndRequested(Goodbye.BYE, "the place is needed for another peer"))
        return True

    async def _note(
        self,
        signed: SignedManifest,
        *,
        dialled: str | None,
        heard_at: str | None,
        found_by: Peer.FoundBy = Peer.FoundBy.CONTACT,
    ) -> None:
        await self.database.write(
            note_contact,
            node_id=signed.node_id,
            chain=signed.chain.keys,
            declared=declared_of(signed),
            manifest=record_of(signed),
            now=_now(),
            dialled=dialled,
            heard_at=heard_at,
            found_by=found_by,
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
            try:
                await self.feed.advance()
            except DatabaseError:
                self._advancing.set()  # what was stored is still to be read
                raise

    def _feed_advanced(self, head: int) -> None:
        for driver in self.links.values():
            driver.post(FeedAdvanced(head))

    async def look(self) -> None:
        """Take in what any process of this node changed: policy, packets, claims, requests."""
        await self._reload_policy()
        self._advancing.set()
        await self._give_up_lost_claims()
        await self._answer_requests()
        if self.asked is not None:
            await self.asked()

    async def _reload_policy(self) -> None:
        # One at a time: of two that overlap, the one that read earlier must not have the last word.
        async with self._policy:
            if await self.database.read(policy_revision) == self.table.revision:
                return
            visibility = await self.database.read(state.visibility_revision)
            self._set_table(await self.database.read(trust_table, self.identity))
            if visibility != self._visibility:
                # The policy did not wait for this: it is asked at each send and each receipt from now on.
                await self.feed.load()
                self._visibility = visibility
                self._tell_links()
        self.table_changed()

    def _set_table(self, table: TrustTable) -> None:
        self.table = table
        for refusals in self._refusals.values():
            refusals.clear()
        self._tell_links()

    def _tell_links(self) -> None:
        for driver in list(self.drivers.values()):
            driver.post(PolicyChanged(self.table))

    async def _give_up_lost_claims(self) -> None:
        """End the links here that another process of this node displaced."""
        mine = {token for driver in self.links.values() if (token := self._tokens.get(driver)) is not None}
        if not mine:
            return
        lost = mine - await self.database.read(claims.held_links, process=self.process)
        for token in lost & self.drivers.keys():
            driver = self.drivers[token]
            self.spawn(driver.end(Goodbye.DUPLICATE, "another process of this node has the link"))

    # --- what commands ask of the links here ---

    async def _answer_requests(self) -> None:
        for request in await self.database.read(requests.waiting, kind=requests.SYNC):
            peer = requests.peer_of(request)
            if peer in self.links and await self.database.write(requests.take, pk=request.pk):
                self.spawn(self.sync_now(peer, request.pk, None))

    async def sync_now(self, peer: NodeId, request: int, problem: str | None) -> None:
        """Reconcile with a peer now and answer the request; `problem`: why there is no link, if there is none."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + requests.PATIENCE_S
        if problem is None:
            # Of two links that met, the other one may stay, and be up in a moment.
            while peer not in self.links and clock() < deadline - requests.PATIENCE_S + LINK_WAIT_S:
                await asyncio.sleep(0.05)
        driver = self.links.get(peer)
        if driver is None:
            answer: dict[str, Any] = {"linked": False, "problem": problem or "the link ended"}
            await self.database.write(requests.answer, pk=request, answer=answer)
            return
        while not driver.settled.is_set() and clock() < deadline:
            await asyncio.sleep(0.05)
        before = driver.session.stats.outcomes_in.get("accepted", 0)
        driver.post(ReconcileNow())
        settled = False
        await asyncio.sleep(0.05)
        while not settled and driver.ending is None and clock() < deadline:
            current = driver.session.state
            settled = isinstance(current, Linked) and current.receiver.is_settled
            await asyncio.sleep(0.05)
        received = driver.session.stats.outcomes_in.get("accepted", 0) - before
        answer = {"linked": driver.ending is None, "settled": settled, "received": received}
        await self.database.write(requests.answer, pk=request, answer=answer)


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


def _heard_at(driver: LinkDriver, signed: SignedManifest) -> str | None:
    """Return where a peer that dialled may be dialled in turn, by the address its connection came from."""
    port = signed.manifest.sync_port
    if driver.session.is_dialler or not port:
        return None
    try:
        return sync_url(driver.host, port)
    except AddressError:
        return None  # no IP address: a proxy or a local socket stands between


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
