"""Headers of every response, and static files without a web server."""

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client, RequestFactory

from arklattice.middleware import CONTENT_SECURITY_POLICY, ContentSecurityPolicyMiddleware

STYLESHEET = "/static/admin/css/base.css"


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/admin/login/", "/admin/", "/", "/no-such-page", STYLESHEET])
def test_every_response_carries_the_policy(path):
    """Pages, redirects, errors and static files alike forbid foreign content and frames."""
    response = Client().get(path)
    assert response["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert response["X-Content-Type-Options"] == "nosniff"


def test_a_stricter_policy_of_a_view_stays():
    """What a view sets itself is not replaced."""
    middleware = ContentSecurityPolicyMiddleware(
        lambda request: HttpResponse(headers={"Content-Security-Policy": "default-src 'none'"})
    )
    assert middleware(RequestFactory().get("/"))["Content-Security-Policy"] == "default-src 'none'"


def test_static_files_come_whole_with_their_type():
    """The admin's stylesheet is served from the installed app, typed, cacheable, and to this origin only."""
    response = Client().get(STYLESHEET)
    assert response.status_code == 200
    assert response["Content-Type"] == 'text/css; charset="utf-8"'
    assert len(response.content) == int(response["Content-Length"]) > 1000
    assert "Access-Control-Allow-Origin" not in response
    unchanged = Client().get(STYLESHEET, headers={"If-None-Match": response["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    head = Client().head(STYLESHEET)
    assert (head.status_code, head.content) == (200, b"")
    assert Client().post(STYLESHEET).status_code == 405
    part = Client().get(STYLESHEET, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, response.content[:10])


@pytest.mark.asyncio
async def test_static_files_under_asgi_warn_about_nothing():
    """Warnings are errors here: the file does not go out through a synchronous iterator."""
    response = await AsyncClient().get(STYLESHEET)
    assert response.status_code == 200
    assert response.content.startswith(b"/*")


@pytest.mark.parametrize(
    "path", ["/static/../manage.py", "/static/%2e%2e/manage.py", "/static/admin/", "/static/admin/css/../../../manage.py"]
)
def test_nothing_outside_the_static_folders_is_served(path):
    """No path climbs out of the static folders or lists one."""
    assert Client().get(f"/static/{path}").status_code == 404
