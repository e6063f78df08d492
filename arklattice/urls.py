"""URLs of the HTTP port (8102)."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from federation.views import well_known

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path(".well-known/arklattice", well_known),
]
