"""The project as an app of its own: the admin site, the first start, one-time passwords."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class ArkLatticeConfig(AppConfig):
    name = "arklattice"
    verbose_name = "ArkLattice"
    default_auto_field = "django.db.models.BigAutoField"


class ArkAdminConfig(AdminConfig):
    """Django's admin, with this project's site as the default one."""

    default_site = "arklattice.admin.ArkAdminSite"
