"""One link, without I/O: bytes and answers go in as events, what is to be done comes out as effects.

    Connecting --> Deciding --> Welcoming --> Linked --> Ended
                   (peer proven,  (our Welcome sent,
                    shell decides)  theirs awaited)

- Connecting runs the handshake. Whatever is wrong there ends the link with 4400 and not a word.
- Deciding waits for the shell: is the peer known, may it link, is it the only link. What the client sends
  together with its Auth (its Welcome or Goodbye) waits for the decision.
- Linked has two halves that know nothing of each other: `Sender` and `Receiver`. Messages that need a grant are
  held to what the Welcomes said, in both directions; what policy makes of it now is for the halves.

After each event send every effect in order, then arm a timer for `deadline`. Answers to effects may come at any
time and between any frames. An event in state Ended has no effect.

Errors of the other side are raised inside as RemoteProtocolError and translated here, in `handle`, into a
Goodbye and the close code. LocalProtocolError is a bug of this program and passes through.

Source: docs/protocol.md, sections 5 and 6.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from federation.protocol import codec, messages
from federation.protocol.errors import Code, Goodbye, HandshakeError, LocalProtocolError, RemoteProtocolError
from federation.protocol.events import (
    Authenticated,
    BatchJudged,
    Catalogue,
    Effect,
    EndLink,
    EndRequested,
    EnvelopesLoaded,
    Event,
    FeedAdvanced,
    FeedRead,
    FrameArrived,
    LinkAllowed,
    LinkRefused,
    LinkStats,
    LinkUp,
    ManifestLoaded,
    MissingFound,
    Opened,
    Penalise,
    PolicyChanged,
    ReconcileNow,
    SendFrame,
    TimerFired,
    TransportClosed,
)
from federation.protocol.fetches import FetchBoard
from federation.protocol.handshake import CipherError, ClientHandshake, Secured, ServerHandshake
from federation.protocol.limits import Limits
from federation.protocol.manifest import SignedManifest
from federation.protocol.receiver import Receiver
from federation.protocol.recent import Refusals
from federation.protocol.sender import Sender
from keys.encoding import NodeId
from peers.trust import Grants, KeyStatus, TrustTable

SILENT_CLOSE = 4400
# Frames a dialler may have sent before the listener decided: its Welcome, and a Goodbye after it.
EARLY_FRAMES = 2
# Pings without their Pong. One goes out for each silence, so a peer that speaks but never answers them could
# make the list grow; beyond this no further one is sent.
OPEN_PINGS = 8


@dataclass(slots=True)
class Connecting:
    """The handshake is under way until `deadline` (monotonic seconds)."""

    deadline: float


@dataclass(slots=True)
class Deciding:
    """The peer proved its key; the shell decides."""

    manifest: SignedManifest
    early_frames: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Welcoming:
    """Our Welcome is sent, the peer's is awaited."""

    secured: Secured
    granted: Grants


@dataclass(slots=True)
class Linked:
    """Both Welcomes are exchanged. `granted`: what ours allows the peer; `may_push`: theirs lets this side push."""

    secured: Secured
    granted: Grants
    sender: Sender
    receiver: Receiver
    may_push: bool


@dataclass(slots=True)
class Ended:
    """Nothing more happens."""


State = Connecting | Deciding | Welcoming | Linked | Ended


class PeerSession:
    """The protocol of one link, in either role.

    Args:
        handshake: A fresh ClientHandshake (this side dialled) or ServerHandshake.
        table: Trust at this moment; newer ones come with LinkAllowed and PolicyChanged.
        catalogue: The sets offered, shared by all links.
        fetches: The board shared by all links.
        refusals: Gives the memory of what was refused from a peer; it outlives links.
        chance: Random numbers in [0, 1), for jitter and split points.
        now: Monotonic seconds at the start.
    """

    def __init__(
        self,
        *,
        handshake: ClientHandshake | ServerHandshake,
        table: TrustTable,
        limits: Limits,
        catalogue: Catalogue,
        fetches: FetchBoard,
        refusals: Callable[[NodeId], Refusals],
        chance: Callable[[], float],
        now: float,
    ) -> None:
        self._handshake = handshake
        self._table = table
        self._limits = limits.within_protocol()
        self._catalogue = catalogue
        self._fetches = fetches
        self._refusals = refusals
        self._chance = chance
        self._effects: list[Effect] = []
        self._now = now
        self._now_ms = 0
        self._last_heard = now
        self._pinged = False
        self._pings: deque[tuple[int, float]] = deque()
        self.state: State = Connecting(deadline=now + limits.handshake_s)
        self.stats = LinkStats()
        self.peer: SignedManifest | None = None

    @property
    def is_dialler(self) -> bool:
        return isinstance(self._handshake, ClientHandshake)

    @property
    def peer_id(self) -> NodeId:
        if self.peer is None:
            raise LocalProtocolError("the peer has not proven its key yet")
        return self.peer.manifest.node_id

    @property
    def deadline(self) -> float | None:
        """Monotonic moment at which TimerFired is due; None: never."""
        match self.state:
            case Connecting(deadline):
                return deadline
            case Deciding():
                return None
            case Welcoming():
                return self._last_heard + self._limits.handshake_s
            case Linked(sender=sender, receiver=receiver):
                moments = (self._liveness_deadline, sender.deadline, receiver.deadline)
                return min(moment for moment in moments if moment is not None)
            case Ended():
                return None
            case _ as unreachable:
                assert_never(unreachable)

    @property
    def _liveness_deadline(self) -> float:
        if self._pinged:
            return self._last_heard + self._limits.dead_after_s
        return self._last_heard + min(self._limits.ping_after_s, self._limits.dead_after_s)

    def handle(self, event: Event, *, now: float, now_ms: int) -> list[Effect]:
        """Return what is to be done, in order.

        Raises:
            LocalProtocolError: the event does not fit the state, which is a bug of the caller.
        """
        self._now, self._now_ms = now, now_ms
        if isinstance(self.state, Ended):
            return []
        try:
            if isinstance(self.state, Linked):
                self.state.receiver.wall_clock(now_ms / 1000 - now, now)
            self._dispatch(event)
        except CipherError:
            self._close(Goodbye.DECRYPT.close_code, Goodbye.DECRYPT, "a frame could not be decrypted")
        except RemoteProtocolError as error:
            if isinstance(error, HandshakeError) or isinstance(self.state, Connecting | Deciding):
                self._close(SILENT_CLOSE, Goodbye.PROTOCOL, error.reason)
            else:
                self._say_goodbye(error.goodbye, error.reason)
        effects, self._effects = self._effects, []
        return effects

    # --- events ---

    def _dispatch(self, event: Event) -> None:
        match event:
            case FrameArrived(data):
                self._frame(data)
            case TimerFired():
                self._timer()
            case FeedAdvanced(head):
                if isinstance(self.state, Linked):
                    self._effects += self.state.sender.feed_advanced(head)
            case FeedRead(rows, upto):
                linked = self._linked()
                self._effects += linked.sender.feed_read(rows, upto, self._now)
            case EnvelopesLoaded(loaded):
                self._effects += self._linked().sender.envelopes_loaded(loaded)
            case BatchJudged():
                self._judged(event)
            case MissingFound(asked, missing):
                self._linked().receiver.missing_found(asked, missing, self._now)
            case ManifestLoaded(origin, signed):
                self._effects += self._linked().sender.manifest_loaded(origin, signed)
            case PolicyChanged(table):
                self._policy_changed(table)
            case ReconcileNow():
                if isinstance(self.state, Linked):
                    self.state.receiver.send_interest(self._now)
            case Opened():
                if isinstance(self._handshake, ClientHandshake):
                    self._effects.append(SendFrame(self._handshake.hello()))
            case LinkAllowed(table):
                self._allowed(table)
            case LinkRefused(goodbye, reason):
                self._refused(goodbye, reason)
            case EndRequested(goodbye, reason):
                if isinstance(self.state, Connecting | Deciding):
                    self._close(SILENT_CLOSE, goodbye, reason)
                else:
                    self._say_goodbye(goodbye, reason)
            case TransportClosed(close_code):
                self._end(EndLink(close_code=close_code or 1006, reason="the connection closed", by_peer=True))
            case _ as unreachable:
                assert_never(unreachable)

    def _linked(self) -> Linked:
        if not isinstance(self.state, Linked):
            raise LocalProtocolError(f"an answer for a link in state {type(self.state).__name__}")
        return self.state

    def _frame(self, data: bytes) -> None:
        self._last_heard = self._now
        self._pinged = False
        if len(data) > self._limits.frame_bytes:
            raise RemoteProtocolError("a frame beyond the limit", Goodbye.TOO_LARGE)
        match self.state:
            case Connecting():
                self._handshake_frame(data)
            case Deciding(early_frames=early):
                if len(early) == EARLY_FRAMES or self.is_dialler:
                    raise RemoteProtocolError("a message before the Welcomes")
                early.append(data)
            case Welcoming(secured, granted):
                self._welcome_frame(secured, granted, data)
            case Linked(secured) as linked:
                plaintext, is_final = secured.opener.open(data)
                self._message(linked, codec.decode(plaintext), is_final)
            case Ended():
                pass
            case _ as unreachable:
                assert_never(unreachable)

    def _handshake_frame(self, data: bytes) -> None:
        if isinstance(self._handshake, ClientHandshake):
            proven = self._handshake.receive(data)
            if proven is not None:
                self._authenticated(proven.manifest)
        else:
            for frame in self._handshake.receive(data):
                self._effects.append(SendFrame(frame))
            if self._handshake.peer is not None:
                self._authenticated(self._handshake.peer)

    def _authenticated(self, manifest: SignedManifest) -> None:
        self.peer = manifest
        self.state = Deciding(manifest)
        self._effects.append(Authenticated(manifest))

    def _secure(self) -> Secured:
        if isinstance(self._handshake, ClientHandshake):
            self._effects.append(SendFrame(self._handshake.auth()))
        return self._handshake.secured()

    def _allowed(self, table: TrustTable) -> None:
        if not isinstance(self.state, Deciding):
            raise LocalProtocolError("a decision about a link that is not waiting for one")
        if table.revision >= self._table.revision:
            self._table = table
        decision = self._may_link()
        if decision is not None:
            self._refused(*decision)
            return
        early = self.state.early_frames
        granted = self._table.grants(self.peer_id)
        secured = self._secure()
        self.state = Welcoming(secured, granted)
        self._last_heard = self._now
        self._put(
            secured,
            messages.Welcome(
                push=granted.push,
                pull=granted.pull,
                query=granted.query,
                window=(self._limits.window_packets, self._limits.window_bytes),
                clock=self._now_ms,
                extensions=(),
            ),
        )
        for frame in early:
            self._early_frame(frame)

    def _early_frame(self, frame: bytes) -> None:
        """Take a frame that came before the decision: after the Welcome only a Goodbye may, for ours was not there yet."""
        match self.state:
            case Welcoming(secured, granted):
                self._welcome_frame(secured, granted, frame)
            case Linked(secured) as linked:
                plaintext, is_final = secured.opener.open(frame)
                message = codec.decode(plaintext)
                if not isinstance(message, messages.Bye):
                    raise RemoteProtocolError("a message before both Welcomes")
                self._message(linked, message, is_final)
            case _:
                pass  # the first one ended the link

    def _refused(self, goodbye: Goodbye, reason: str) -> None:
        if not isinstance(self.state, Deciding):
            raise LocalProtocolError("a decision about a link that is not waiting for one")
        secured = self._secure()
        self.state = Welcoming(secured, Grants(push=False, pull=False, query=False))
        self._say_goodbye(goodbye, reason)

    def _may_link(self) -> tuple[Goodbye, str] | None:
        """Return why the link may not stand, or None."""
        decision = self._table.may_link(self.peer_id)
        if not decision.allowed:
            return Goodbye(decision.code), decision.reason
        key = None if self.peer is None else self._table.keys.get(self.peer.key_fingerprint)
        if key is not None and key.status is KeyStatus.REVOKED:
            return Goodbye.PENDING, "the key that opened this link is revoked here"
        return None

    def _welcome_frame(self, secured: Secured, granted: Grants, data: bytes) -> None:
        plaintext, is_final = secured.opener.open(data)
        message = codec.decode(plaintext)
        match message:
            case messages.Bye() if is_final:
                self._peer_left(message)
            case messages.Welcome() if not is_final:
                self._link_up(secured, granted, message)
            case _:
                raise RemoteProtocolError("a message in place of Welcome")

    def _link_up(self, secured: Secured, granted: Grants, welcome: messages.Welcome) -> None:
        self.stats.clock_offset_ms = welcome.clock - self._now_ms

        def send(message: messages.Message) -> None:
            self._put(secured, message)

        def send_encoded(plaintext: bytes) -> None:
            self._effects.append(SendFrame(secured.sealer.seal(plaintext)))

        window_packets = min(welcome.window[0], self._limits.window_packets)
        window_bytes = min(welcome.window[1], self._limits.window_bytes)
        sender = Sender(
            peer=self.peer_id,
            table=self._table,
            limits=self._limits,
            may_push=welcome.push,
            window=(window_packets, window_bytes),
            catalogue=self._catalogue,
            send=send,
            send_encoded=send_encoded,
            chance=self._chance,
            stats=self.stats,
        )
        receiver = Receiver(
            link=self,
            peer=self.peer_id,
            table=self._table,
            limits=self._limits,
            window=(self._limits.window_packets, self._limits.window_bytes),
            catalogue=self._catalogue,
            fetches=self._fetches,
            send=send,
            chance=self._chance,
            stats=self.stats,
            refused=self._refusals(self.peer_id),
            peer_has=sender.peer_has,
        )
        self.state = Linked(secured, granted, sender, receiver, may_push=welcome.push)
        self._effects.append(LinkUp())
        if welcome.pull:
            receiver.start(self._now)
        self._ping(self.state)

    # --- messages of a live link ---

    def _message(self, linked: Linked, message: messages.Message | None, is_final: bool) -> None:
        if is_final is not isinstance(message, messages.Bye):
            raise RemoteProtocolError("a Goodbye is the last frame, and no other message is")
        sender, receiver = linked.sender, linked.receiver
        match message:
            case None:
                pass  # an extension this version does not know
            case messages.Bye():
                self._peer_left(message)
            case messages.Ping(clock):
                self._put(linked.secured, messages.Pong(echo=clock, clock=self._now_ms))
            case messages.Pong():
                self._pong(message)
            case messages.Interest():
                self._require_pull(linked, message)
                self._effects += sender.interest(message)
            case messages.Prefer():
                self._require_pull(linked, message)
                self._effects += sender.prefer(message, self._now)
            case messages.Want():
                self._require_taker(linked, message)
                self._effects += sender.want(message)
            case messages.Reconcile(role=messages.Role.REQUEST):
                self._require_taker(linked, message)
                sender.reconcile(message)
            case messages.Reconcile():
                self._effects += receiver.reconcile(message, self._now)
            case messages.Ack():
                self._effects += sender.ack(message)
            case messages.GetManifest():
                self._effects += sender.manifest_wanted(message)
            case messages.Manifest():
                self._effects += receiver.manifest(message)
            case messages.Scope():
                # A peer that may not push was asked all the same, and answers; unasked it has nothing to say.
                self._require(linked.granted.push or receiver.awaits_scope, message)
                receiver.scope(message)
            case messages.Packets():
                self._require(linked.granted.push, message)
                self._effects += receiver.packets(message, self._now)
            case messages.Have():
                self._require(linked.granted.push, message)
                receiver.have(message, self._now)
            case messages.Query():
                self._put(linked.secured, messages.Result(number=message.number, code=Code.UNSUPPORTED.value, rows=(), cursor=None))
            case messages.HelloClient() | messages.HelloServer() | messages.Auth() | messages.Welcome() | messages.Result():
                raise RemoteProtocolError(f"{type(message).__name__} out of place")
            case _ as unreachable:
                assert_never(unreachable)

    def _require_pull(self, linked: Linked, message: messages.Message) -> None:
        self._require(linked.granted.pull, message)

    def _require_taker(self, linked: Linked, message: messages.Message) -> None:
        """Ask for packets only who may have them and said that it takes them."""
        self._require(linked.granted.pull and linked.may_push, message)

    def _require(self, granted: bool, message: messages.Message) -> None:
        if not granted:
            raise RemoteProtocolError(f"{type(message).__name__} beyond what the Welcomes allow")

    def _judged(self, event: BatchJudged) -> None:
        linked = self._linked()
        for effect in linked.receiver.judged(event, self._now):
            self._effects.append(effect)
            if isinstance(effect, Penalise):
                self._say_goodbye(Goodbye.PENALTY, effect.reason)

    # --- policy ---

    def _policy_changed(self, table: TrustTable) -> None:
        self._table = table
        if not isinstance(self.state, Linked | Welcoming):
            return  # asked again with the decision
        refusal = self._may_link()
        if refusal is not None:
            self._say_goodbye(*refusal)
            return
        grants, announced = table.grants(self.peer_id), self.state.granted
        if (grants.push and not announced.push) or (grants.pull and not announced.pull) or (grants.query and not announced.query):
            # A Welcome cannot be taken back or extended: a new link tells the peer what it may do now.
            self._say_goodbye(Goodbye.BYE, "what you may do here has changed: please connect again")
            return
        if isinstance(self.state, Linked):
            self.state.receiver.policy_changed(table, self._now)
            self._effects += self.state.sender.policy_changed(table)

    # --- time ---

    def _timer(self) -> None:
        match self.state:
            case Connecting(deadline):
                if self._now >= deadline:
                    self._close(SILENT_CLOSE, Goodbye.DEAD, "the handshake took too long")
            case Deciding() | Ended():
                pass
            case Welcoming():
                if self._now >= self._last_heard + self._limits.handshake_s:
                    self._close(Goodbye.DEAD.close_code, Goodbye.DEAD, "no Welcome came")
            case Linked(sender=sender, receiver=receiver) as linked:
                if self._now >= self._last_heard + self._limits.dead_after_s:
                    self._close(Goodbye.DEAD.close_code, Goodbye.DEAD, "nothing heard for too long")
                    return
                if not self._pinged and self._now >= self._last_heard + self._limits.ping_after_s:
                    self._pinged = True
                    self._ping(linked)
                sender.timer(self._now)
                self._effects += receiver.timer(self._now)
            case _ as unreachable:
                assert_never(unreachable)

    def _ping(self, linked: Linked) -> None:
        if len(self._pings) < OPEN_PINGS:
            self._pings.append((self._now_ms, self._now))
            self._put(linked.secured, messages.Ping(clock=self._now_ms))

    def _pong(self, message: messages.Pong) -> None:
        if not self._pings or self._pings[0][0] != message.echo:
            raise RemoteProtocolError("a Pong that answers no Ping")
        _, sent = self._pings.popleft()
        rtt_ms = (self._now - sent) * 1000
        self.stats.rtt_ms = rtt_ms
        self.stats.clock_offset_ms = round(message.clock - (message.echo + rtt_ms / 2))

    # --- endings ---

    def _put(self, secured: Secured, message: messages.Message, *, final: bool = False) -> None:
        self._effects.append(SendFrame(secured.sealer.seal(codec.encode(message), final=final)))

    def _say_goodbye(self, goodbye: Goodbye, reason: str) -> None:
        """End the link in words: a Goodbye as the last encrypted frame, then the close code."""
        if isinstance(self.state, Welcoming | Linked):
            self._put(self.state.secured, messages.Bye(code=goodbye, reason=reason[: messages.MAX_REASON_CHARS]), final=True)
        self._close(goodbye.close_code, goodbye, reason)

    def _peer_left(self, message: messages.Bye) -> None:
        self._end(EndLink(close_code=message.code.close_code, goodbye=message.code, reason=message.reason, by_peer=True))

    def _close(self, close_code: int, goodbye: Goodbye, reason: str) -> None:
        self._end(EndLink(close_code=close_code, goodbye=goodbye, reason=reason))

    def _end(self, ending: EndLink) -> None:
        if isinstance(self.state, Linked):
            self.state.receiver.close()
        self.state = Ended()
        self._effects.append(ending)
