"""The admin site: who this node is, and what an operator does next."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext_lazy as _

from arklattice.passwords import must_change_password
from federation.models import KnowledgePacket
from keys.ed25519 import KeysError
from keys.encoding import grouped
from keys.services import Identity, load_identity
from peers.models import Peer
from peers.trust import Tier


@dataclass(frozen=True, slots=True)
class NextStep:
    """One thing to do, in plain words, and what to type for it (empty: nothing)."""

    text: str
    command: str = ""


class ArkAdminSite(admin.AdminSite):
    site_header = "ArkLattice"
    site_title = "ArkLattice"
    index_title = _("This node")
    index_template = "arklattice/index.html"
    password_change_template = "arklattice/password_change_form.html"  # noqa: S105 -- a path
    # There is no public site to view.
    site_url = None

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        identity: Identity | None = None
        key_problem = ""
        try:
            identity = load_identity()
        except KeysError as error:
            key_problem = str(error)
        context = {
            "identity": identity,
            "node_name": settings.ARK_NODE_NAME,
            "fingerprint": grouped(identity.pair.fingerprint) if identity else "",
            "key_problem": key_problem,
            "next_steps": list(next_steps(has_key=identity is not None)),
        }
        return super().index(request, context | (extra_context or {}))

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        return super().password_change(request, {"first_login": must_change_password(request.user), **(extra_context or {})})


def next_steps(*, has_key: bool) -> Iterator[NextStep]:
    """Yield what an operator of this node has to do for knowledge to flow, first things first."""
    if not has_key:
        yield NextStep("Give this node its key.", "./ark-lattice crypto keygen")
        return
    trusted = Peer.objects.filter(tier__in=[Tier.CORE, Tier.SANDBOX], blocked=False)
    if not trusted.exists():
        yield NextStep(
            "Print this node's contact card and hand it to the operator of another node.", "./ark-lattice crypto export-key --card"
        )
        yield NextStep(
            "Compare fingerprints with that operator by another way, then file their card under a tier.",
            "./ark-lattice crypto import-key NAME CARD --tier core",
        )
    elif waiting := Peer.objects.filter(tier=Tier.UNKNOWN, blocked=False).count():
        text = "One peer is waiting for a decision." if waiting == 1 else f"{waiting} peers are waiting for a decision."
        yield NextStep(text, "./ark-lattice peers list")
    if not KnowledgePacket.objects.filter(received_from="").exists():
        yield NextStep("Publish the first packet of this node.", './ark-lattice packets publish --text "Hello"')
