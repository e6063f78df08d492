"""A new node as its operator meets it: bootstrap, run, log in, choose a password."""

import http.cookiejar
import re
import urllib.parse
import urllib.request

import pytest


class Browser:
    """Just enough of one: cookies, redirects, and the CSRF token of the last page."""

    def __init__(self, base):
        self.base = base
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        self.page = ""
        self.url = ""

    def get(self, path):
        self._read(urllib.request.Request(self.base + path))

    def submit(self, **fields):
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.page).group(1)
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token, **fields}).encode()
        self._read(urllib.request.Request(self.url, data, headers={"Referer": self.url}))

    def _read(self, request):
        with self.opener.open(request, timeout=10) as response:
            self.url, self.page = response.url, response.read().decode()


@pytest.fixture
def new(nodes):
    """A folder as a new user finds it: neither key nor database."""
    return nodes("new", bare=True)


def test_first_start_and_first_login(new):
    """Bootstrap prints a password once; it opens the change page only, and the chosen one the admin of the running node."""
    said = new.manage("bootstrap").stdout
    password = re.search(r"one-time password +(\S+)", said).group(1)
    assert f"http://127.0.0.1:{new.http_port}/admin/" in said
    assert new.manage("bootstrap").stdout == ""
    new.start()

    browser = Browser(f"http://127.0.0.1:{new.http_port}")
    browser.get("/")
    assert "/admin/login/" in browser.url
    browser.submit(username="admin", password=password, next="/admin/")
    assert browser.url.endswith("/admin/password_change/")
    browser.get("/admin/peers/peer/")
    assert browser.url.endswith("/admin/password_change/")
    own = "correct-horse-battery-7"
    browser.submit(old_password=password, new_password1=own, new_password2=own)
    assert browser.url.endswith("/admin/password_change/done/")
    browser.get("/admin/")
    assert new.node_id in browser.page
    assert password not in new.log_text()
    for table in ["peers/peer", "federation/knowledgepacket", "keys/signingkey"]:
        browser.get(f"/admin/{table}/")
        assert browser.url.endswith(f"/admin/{table}/")
    new.stop()
