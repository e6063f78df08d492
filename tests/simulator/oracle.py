"""What the trust rules are, told a second time and in other words.

The simulator asks this module, never `peers.trust`, whether something may leave a node or come in: a mistake in the
tables there must not excuse itself. Source: docs/protocol.md, section 3.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one operator decided about one other node."""

    tier: str = "unknown"
    blocked: bool = False
    keyed: bool = False

    @property
    def is_core(self):
        return self.tier == "core" and self.keyed and not self.blocked

    @property
    def is_sandbox(self):
        return self.tier == "sandbox" and self.keyed and not self.blocked

    @property
    def may_link(self):
        return not self.blocked and (self.is_core or self.is_sandbox or self.tier == "external")


NOBODY = Opinion()


@dataclass(slots=True)
class Opinions:
    """All of one operator's decisions; `own` is the operator's node."""

    own: bytes
    of: dict[bytes, Opinion]

    def about(self, node_id):
        return self.of.get(node_id, NOBODY)

    def sends(self, peer, origin, audience):
        """To CORE peers go this node's own and CORE origins' packets, private ones never."""
        return audience != "private" and self.about(peer).is_core and (origin == self.own or self.about(origin).is_core)

    def accepts(self, peer, origin, audience):
        """From CORE peers everything of CORE and SANDBOX origins and of this node, from SANDBOX peers their own."""
        if audience == "private":
            return False
        if self.about(peer).is_sandbox:
            return origin == peer
        if not self.about(peer).is_core:
            return False
        return origin == self.own or self.about(origin).is_core or self.about(origin).is_sandbox

    def dials(self, peer):
        return self.about(peer).is_core or self.about(peer).is_sandbox
