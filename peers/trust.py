"""Who may do what: one table answers every question of trust, each answer with its reason.

A question names the peer at the other end of a link, the origin that signed a packet and the packet's
audience. Both nodes are first placed by what this operator decided about them: a *standing* (tier, the
blocked flag beside it, whether a trusted key is held) becomes a `Place`, and an origin seen over one
link becomes a `Relation`. The tables `LINK`, `ACCEPT`, `SEND`, `RELAY` and `QUERY` then hold a rule for
every combination; nothing else in the program decides such a thing.

- CORE and SANDBOX count only with a trusted key. Without one (revoked, say) the peer stands as UNKNOWN
  and its packets are of an unknown origin.
- The unknown origin is asked about first, then the audience, then the tables.
- Nothing a peer says of itself enters here: not its name, not the tier it declares.

`TrustTable` is a value: it is built anew from the registry when `PolicyRevision` moves.

Source: docs/protocol.md, section 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from keys.encoding import KeyFingerprint, NodeId

# Rows of one Interest or Scope; origins beyond it are left out, always the same ones (docs/protocol.md, section 6).
MAX_ORIGIN_ROWS = 2_048

# The code of every decision that allows something; what is refused carries the protocol's own word for it.
OK = "ok"


class Tier(StrEnum):
    """How far this node's operator trusts a peer."""

    CORE = "core"
    SANDBOX = "sandbox"
    EXTERNAL = "external"
    UNKNOWN = "unknown"


class Audience(StrEnum):
    """How far a packet's author lets it travel."""

    PRIVATE = "private"
    CORE = "core"
    PUBLIC = "public"


class KeyStatus(StrEnum):
    """What this node makes of a public key."""

    TRUSTED = "trusted"
    UNCONFIRMED = "unconfirmed"
    RETIRED = "retired"
    REVOKED = "revoked"


class Place(StrEnum):
    """Where a node stands once the blocked flag and its keys are weighed; `SELF` is this node."""

    CORE = "core"
    SANDBOX = "sandbox"
    EXTERNAL = "external"
    UNKNOWN = "unknown"
    BLOCKED = "blocked"
    SELF = "self"


class Relation(StrEnum):
    """What an origin is to this node and to the peer at the other end of the link.

    `OWN`: the peer signed it itself. `OURS`: this node did. The rest: another node's, by where that one stands.
    """

    OWN = "own"
    OURS = "ours"
    CORE = "core"
    SANDBOX = "sandbox"
    EXTERNAL = "external"
    UNKNOWN = "unknown"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Standing:
    """What this node's operator decided about one peer; `keyed`: at least one of its keys is trusted."""

    node_id: NodeId
    tier: Tier = Tier.UNKNOWN
    blocked: bool = False
    keyed: bool = False

    @property
    def place(self) -> Place:
        if self.blocked:
            return Place.BLOCKED
        if self.tier in (Tier.CORE, Tier.SANDBOX) and not self.keyed:
            return Place.UNKNOWN
        return Place(self.tier)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key this node holds for an origin; `public_key` is 32 bytes."""

    node_id: NodeId
    public_key: bytes
    status: KeyStatus


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer of the policy.

    `code` is `ok`, or the protocol's word for the refusal (docs/protocol.md, sections 2 and 5); `rule` names
    the row of the table, stable and at most 64 characters; `reason` is a sentence for people.
    """

    allowed: bool
    code: str
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Grants:
    """What a Welcome tells the peer it may do here."""

    push: bool
    pull: bool
    query: bool


# Every decision by its rule: receipts store the slug, and `explain` gives its sentence back.
RULES: dict[str, Decision] = {}


def _rule(code: str, slug: str, reason: str) -> Decision:
    decision = Decision(code == OK, code, slug, reason)
    RULES[slug] = decision
    return decision


def explain(rule: str) -> str:
    """Return the sentence of a rule, or an empty string for a slug this version does not know."""
    return RULES[rule].reason if rule in RULES else ""


# Asked before the tables.
UNKNOWN_ORIGIN = _rule("unknown-origin", "origin-without-key", "No trusted key of the packet's origin is held here.")
PRIVATE = _rule("tier", "audience-private", "A private packet never leaves the node that made it.")

LINK: Mapping[Place, Decision] = {
    Place.CORE: _rule(OK, "link-core", "The peer is CORE."),
    Place.SANDBOX: _rule(OK, "link-sandbox", "The peer is SANDBOX: it may hand over its own packets, and gets none."),
    Place.EXTERNAL: _rule(OK, "link-external", "The peer is EXTERNAL: it may link to ask for public packets, no more."),
    Place.UNKNOWN: _rule(
        "pending", "link-unknown", "The operator has not decided about this peer yet, or holds no trusted key of it."
    ),
    Place.BLOCKED: _rule("blocked", "link-blocked", "The operator blocked this peer."),
    Place.SELF: _rule("protocol", "link-self", "That is this node itself."),
}

_ACCEPT_NOT_FROM_EXTERNAL = _rule("tier", "accept-external", "The peer is EXTERNAL: nothing is accepted from it.")
_ACCEPT_NOT_FROM_UNKNOWN = _rule(
    "tier", "accept-unknown", "The operator has not decided about this peer: nothing is accepted from it."
)
_ACCEPT_NOT_FROM_BLOCKED = _rule("tier", "accept-blocked", "The operator blocked this peer: nothing is accepted from it.")
_ACCEPT_NOT_FROM_SELF = _rule("tier", "accept-self", "A link with this node itself carries nothing.")
_ACCEPT_SANDBOX_OWN_ONLY = _rule("tier", "accept-sandbox-other", "The peer is SANDBOX: only its own packets are accepted from it.")

ACCEPT: Mapping[Place, Mapping[Relation, Decision]] = {
    Place.CORE: {
        Relation.OWN: _rule(OK, "accept-core-own", "A CORE peer handed over its own packet: accepted, and passed on."),
        Relation.OURS: _rule(OK, "accept-core-ours", "A CORE peer gave this node one of its own packets back: accepted."),
        Relation.CORE: _rule(OK, "accept-core-core", "A CORE peer relayed another CORE origin's packet: accepted, and passed on."),
        Relation.SANDBOX: _rule(
            OK, "accept-core-sandbox", "A CORE peer relayed a SANDBOX origin's packet: accepted, and kept here."
        ),
        Relation.EXTERNAL: _rule(
            "tier", "accept-core-external", "The packet's origin is EXTERNAL here: nothing of it is accepted."
        ),
        Relation.UNKNOWN: _rule("tier", "accept-core-unknown", "The operator has not decided about the packet's origin."),
        Relation.BLOCKED: _rule("tier", "accept-core-blocked", "The operator blocked the packet's origin."),
    },
    Place.SANDBOX: {
        **dict.fromkeys(Relation, _ACCEPT_SANDBOX_OWN_ONLY),
        Relation.OWN: _rule(OK, "accept-sandbox-own", "A SANDBOX peer handed over its own packet: accepted, and kept here."),
    },
    Place.EXTERNAL: dict.fromkeys(Relation, _ACCEPT_NOT_FROM_EXTERNAL),
    Place.UNKNOWN: dict.fromkeys(Relation, _ACCEPT_NOT_FROM_UNKNOWN),
    Place.BLOCKED: dict.fromkeys(Relation, _ACCEPT_NOT_FROM_BLOCKED),
    Place.SELF: dict.fromkeys(Relation, _ACCEPT_NOT_FROM_SELF),
}

_SEND_NOT_TO_SANDBOX = _rule("tier", "send-sandbox", "The peer is SANDBOX: nothing is sent to it.")
_SEND_NOT_TO_EXTERNAL = _rule("tier", "send-external", "The peer is EXTERNAL: nothing is sent to it unasked.")
_SEND_NOT_TO_UNKNOWN = _rule("tier", "send-unknown", "The operator has not decided about this peer: nothing is sent to it.")
_SEND_NOT_TO_BLOCKED = _rule("tier", "send-blocked", "The operator blocked this peer: nothing is sent to it.")
_SEND_NOT_TO_SELF = _rule("tier", "send-self", "A link with this node itself carries nothing.")

SEND: Mapping[Place, Mapping[Relation, Decision]] = {
    Place.CORE: {
        Relation.OWN: _rule(OK, "send-core-own", "The peer is CORE: a packet of its own goes back to it when it has lost it."),
        Relation.OURS: _rule(OK, "send-core-ours", "The peer is CORE: this node's own packets go to it."),
        Relation.CORE: _rule(OK, "send-core-core", "The peer is CORE: a CORE origin's packets go to it."),
        Relation.SANDBOX: _rule("tier", "send-core-sandbox", "The packet's origin is SANDBOX: its packets stay on this node."),
        Relation.EXTERNAL: _rule("tier", "send-core-external", "The packet's origin is EXTERNAL: its packets are not passed on."),
        Relation.UNKNOWN: _rule("tier", "send-core-unknown", "The operator has not decided about the packet's origin."),
        Relation.BLOCKED: _rule(
            "tier", "send-core-blocked", "The operator blocked the packet's origin: its packets are not passed on."
        ),
    },
    Place.SANDBOX: dict.fromkeys(Relation, _SEND_NOT_TO_SANDBOX),
    Place.EXTERNAL: dict.fromkeys(Relation, _SEND_NOT_TO_EXTERNAL),
    Place.UNKNOWN: dict.fromkeys(Relation, _SEND_NOT_TO_UNKNOWN),
    Place.BLOCKED: dict.fromkeys(Relation, _SEND_NOT_TO_BLOCKED),
    Place.SELF: dict.fromkeys(Relation, _SEND_NOT_TO_SELF),
}

RELAY: Mapping[Place, Decision] = {
    Place.SELF: _rule(OK, "relay-ours", "This node's own packets go to its CORE peers."),
    Place.CORE: _rule(OK, "relay-core", "A CORE origin's packets go on to this node's other CORE peers."),
    Place.SANDBOX: _rule("tier", "relay-sandbox", "A SANDBOX origin's packets stay on this node."),
    Place.EXTERNAL: _rule("tier", "relay-external", "An EXTERNAL origin's packets are not passed on."),
    Place.UNKNOWN: _rule("tier", "relay-unknown", "The operator has not decided about the packet's origin."),
    Place.BLOCKED: _rule("tier", "relay-blocked", "The operator blocked the packet's origin: its packets are not passed on."),
}

# What a peer may ask for at all, and the audiences it is then answered with.
QUERY: Mapping[Place, tuple[Decision, frozenset[Audience]]] = {
    Place.CORE: (
        _rule(OK, "query-core", "The peer is CORE: it may ask for all that would be sent to it."),
        frozenset({Audience.CORE, Audience.PUBLIC}),
    ),
    Place.SANDBOX: (
        _rule(OK, "query-sandbox", "The peer is SANDBOX: it may ask for public packets."),
        frozenset({Audience.PUBLIC}),
    ),
    Place.EXTERNAL: (
        _rule(OK, "query-external", "The peer is EXTERNAL: it may ask for public packets."),
        frozenset({Audience.PUBLIC}),
    ),
    Place.UNKNOWN: (
        _rule("tier", "query-unknown", "The operator has not decided about this peer: it may ask nothing."),
        frozenset(),
    ),
    Place.BLOCKED: (_rule("tier", "query-blocked", "The operator blocked this peer: it may ask nothing."), frozenset()),
    Place.SELF: (_rule("tier", "query-self", "That is this node itself."), frozenset()),
}
QUERY_AUDIENCE = _rule("tier", "query-audience", "The packet is not public, and this peer may ask for public packets only.")
QUERY_ORIGIN = _rule("tier", "query-origin", "Answers hold this node's own and CORE origins' packets only.")

ELEVATE = _rule(OK, "elevate", "A trusted key of the peer is held here.")
ELEVATE_FREE = _rule(OK, "elevate-none", "This tier needs no key: nothing is accepted from it.")
ELEVATE_KEYLESS = _rule(
    "unknown-key",
    "elevate-without-key",
    "CORE and SANDBOX need a key that the operator imported: nothing tells this peer from an impostor yet. "
    "Compare the fingerprint with its operator, then run importkey.",
)


def may_elevate(tier: Tier, *, keyed: bool) -> Decision:
    """Return whether a peer may be put into `tier`, given whether a trusted key of it is held."""
    if tier in (Tier.EXTERNAL, Tier.UNKNOWN):
        return ELEVATE_FREE
    return ELEVATE if keyed else ELEVATE_KEYLESS


@dataclass(frozen=True, slots=True)
class TrustTable:
    """Everything the policy needs to know, at one revision of the registry.

    Args:
        own: This node.
        standings: Every peer of the registry. A node that is missing here is UNKNOWN; `own` is never looked up.
        keys: All keys held, by fingerprint, this node's own among them, so that a wiped node can verify what it gets back.
        revision: `PolicyRevision` these were read at.
    """

    own: NodeId
    standings: Mapping[NodeId, Standing]
    keys: Mapping[KeyFingerprint, TrustedKey]
    revision: int = 0

    def standing(self, node_id: NodeId) -> Standing:
        """Return what was decided about a node; UNKNOWN and unkeyed for one never met."""
        return self.standings.get(node_id) or Standing(node_id)

    def may_link(self, peer: NodeId) -> Decision:
        """Return whether a link with this peer may stand; refused: `code` is the Goodbye. Penalties are decided elsewhere."""
        return LINK[self._place(peer)]

    def grants(self, peer: NodeId) -> Grants:
        """Return what the Welcome to this peer allows: push its packets, pull ours, query."""
        place = self._place(peer)
        return Grants(
            push=any(decision.allowed for decision in ACCEPT[place].values()),
            pull=any(decision.allowed for decision in SEND[place].values()),
            query=QUERY[place][0].allowed,
        )

    def may_accept(self, link_peer: NodeId, origin: NodeId, audience: Audience) -> Decision:
        """Return whether a packet of `origin` is taken from the hands of `link_peer`; refused: `code` goes into the Ack."""
        if not self._is_known_origin(origin):
            return UNKNOWN_ORIGIN
        if audience is Audience.PRIVATE:
            return PRIVATE
        return ACCEPT[self._place(link_peer)][self._relation(link_peer, origin)]

    def may_send(self, link_peer: NodeId, origin: NodeId, audience: Audience) -> Decision:
        """Return whether a packet of `origin` may go to `link_peer`."""
        if not self._is_known_origin(origin):
            return UNKNOWN_ORIGIN
        if audience is Audience.PRIVATE:
            return PRIVATE
        return SEND[self._place(link_peer)][self._relation(link_peer, origin)]

    def may_relay(self, origin: NodeId) -> Decision:
        """Return whether packets of `origin` go on to other nodes at all."""
        if not self._is_known_origin(origin):
            return UNKNOWN_ORIGIN
        return RELAY[self._place(origin)]

    def may_query(self, peer: NodeId, origin: NodeId, audience: Audience) -> Decision:
        """Return whether an answer to `peer` may hold a packet of `origin` with this audience."""
        decision, audiences = QUERY[self._place(peer)]
        if not decision.allowed:
            return decision
        if not self._is_known_origin(origin):
            return UNKNOWN_ORIGIN
        if audience is Audience.PRIVATE:
            return PRIVATE
        if not RELAY[self._place(origin)].allowed:
            return QUERY_ORIGIN
        return decision if audience in audiences else QUERY_AUDIENCE

    def accepted_origins(self, link_peer: NodeId) -> list[NodeId]:
        """Return the origins whose packets are accepted from this peer, for Interest: at most 2,048.

        This node first, then the peer, then the others by node_id, so that two nodes that must cut their
        lists keep the same origins.
        """
        return self._origins(link_peer, self.may_accept)

    def offered_origins(self, link_peer: NodeId) -> list[NodeId]:
        """Return the origins whose packets are offered to this peer, for Scope: at most 2,048, ordered as in Interest."""
        return self._origins(link_peer, self.may_send)

    def _origins(self, link_peer: NodeId, question: Callable[[NodeId, NodeId, Audience], Decision]) -> list[NodeId]:
        others = sorted(node_id for node_id in self.standings if node_id not in (self.own, link_peer))
        allowed = [origin for origin in (self.own, link_peer, *others) if question(link_peer, origin, Audience.CORE).allowed]
        return allowed[:MAX_ORIGIN_ROWS]

    def _place(self, node_id: NodeId) -> Place:
        return Place.SELF if node_id == self.own else self.standing(node_id).place

    def _is_known_origin(self, origin: NodeId) -> bool:
        return origin == self.own or self.standing(origin).keyed

    def _relation(self, link_peer: NodeId, origin: NodeId) -> Relation:
        if origin == self.own:
            return Relation.OURS
        if origin == link_peer:
            return Relation.OWN
        return Relation(self.standing(origin).place.value)
