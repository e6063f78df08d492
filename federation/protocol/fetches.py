"""Who is fetching what: one board for all links of a node, so that an id is asked of one peer at a time.

A claim ends when the packet was judged, when the peer says it is gone or does not answer, when its link ends,
or by time; then another link that learned the id may claim it. So there are at most (links x wants) claims.

Source: docs/protocol.md, section 6, item 4 ("Unanswered for 30 s: ask another peer").
"""

from collections.abc import Hashable


class FetchBoard:
    """Claims on packet ids by links; a link is any hashable token."""

    def __init__(self) -> None:
        self._claims: dict[bytes, tuple[Hashable, float]] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def claim(self, packet_id: bytes, link: Hashable, now: float, until: float) -> bool:
        """Return True when `link` now holds the claim; an expired claim of another link is taken over."""
        held = self._claims.get(packet_id)
        if held is not None and held[0] != link and held[1] > now:
            return False
        self._claims[packet_id] = (link, until)
        return True

    def is_claimed(self, packet_id: bytes, now: float) -> bool:
        """Return True while any link holds the id."""
        held = self._claims.get(packet_id)
        return held is not None and held[1] > now

    def release(self, packet_id: bytes, link: Hashable) -> None:
        """Give up a claim; that of another link stays."""
        held = self._claims.get(packet_id)
        if held is not None and held[0] == link:
            del self._claims[packet_id]

    def release_all(self, link: Hashable) -> None:
        """Forget every claim of a link that ended."""
        for packet_id in [packet_id for packet_id, (holder, _) in self._claims.items() if holder == link]:
            del self._claims[packet_id]
