"""The admin site: who this node is, and what an operator does next."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _


class ArkAdminSite(admin.AdminSite):
    site_header = "ArkLattice"
    site_title = "ArkLattice"
    index_title = _("This node")
    # There is no public site to view.
    site_url = None
