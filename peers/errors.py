"""What the registry of peers may refuse; every message is one sentence for the operator.

PeersError
├── UnknownPeerError         no such peer
├── AmbiguousPeerError       the prefix fits several
├── PeerNameError            a name that may not be given
├── AddressError             not a ws:// or wss:// URL
├── PacketChoiceError        keep, hide or purge, where there is nothing to choose
├── KeyConflictError         the key or the name is bound otherwise here
└── ElevationRefusedError    the policy says no; carries its Decision
"""

from peers.trust import Decision


class PeersError(Exception):
    """The registry refused; nothing was changed."""


class UnknownPeerError(PeersError):
    """No peer of the registry is meant by this text."""


class AmbiguousPeerError(PeersError):
    """Several peers are meant by this prefix."""


class PeerNameError(PeersError):
    """This text cannot be the operator's name for a peer."""


class AddressError(PeersError):
    """This text is no address a peer could be dialled at."""


class PacketChoiceError(PeersError):
    """What becomes of a peer's packets is asked at a demotion only."""


class KeyConflictError(PeersError):
    """The key, or the name it was to get, already belongs to another peer or to this node."""


class ElevationRefusedError(PeersError):
    """The tier needs what this peer does not have."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.reason)
        self.decision = decision
