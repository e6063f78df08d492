"""Settings of the federation: what is taken, and what is refused with the setting's name."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from federation import conf
from federation.conf import Bind, parse_bind, static_peers
from federation.protocol.limits import Limits


@pytest.fixture(autouse=True)
def fresh():
    conf.limits.cache_clear()
    yield
    conf.limits.cache_clear()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ()),
        (["", "  "], ()),
        (["ws://Ada.example"], ("ws://ada.example:8104/sync",)),
        (["wss://ada.example:443/sync"], ("wss://ada.example:443/sync",)),
        (["ws://[::1]:9000", " ws://[::1]:9000/ "], ("ws://[::1]:9000/sync",)),
        (["ws://[fe80::1%eth0]"], ("ws://[fe80::1%eth0]:8104/sync",)),
    ],
)
def test_static_peers(settings, given, expected):
    """URLs are normalised, with the port and path they lack, and each taken once."""
    settings.ARK_STATIC_PEERS = given
    assert static_peers() == expected


@pytest.mark.parametrize("bad", ["http://ada.example", "ada.example:8104", "ws://", "ws://a b", "ws://user@host"])
def test_bad_static_peer_is_named(settings, bad):
    """What is no URL of a sync port is refused, naming the setting."""
    settings.ARK_STATIC_PEERS = ["ws://fine.example", bad]
    with pytest.raises(ImproperlyConfigured, match="ARK_STATIC_PEERS"):
        static_peers()


@pytest.mark.parametrize(("text", "bind"), [("127.0.0.1:8104", Bind("127.0.0.1", 8104)), ("[::]:1", Bind("::", 1))])
def test_bind(text, bind):
    assert parse_bind("ARK_SYNC_BIND", text) == bind
    assert parse_bind("ARK_SYNC_BIND", str(bind)) == bind


@pytest.mark.parametrize("text", ["", "8104", ":8104", "host:", "host:0", "host:65536", "host:x", "host:-1", "host:１"])
def test_bad_bind_is_named(text):
    with pytest.raises(ImproperlyConfigured, match="ARK_SYNC_BIND"):
        parse_bind("ARK_SYNC_BIND", text)


def test_limits_from_the_environment(settings):
    """Each limit may be set by its name, as a number of its kind."""
    settings.ARK_LIMITS = {"links": "3", "handshake_s": "2.5"}
    limits = conf.limits()
    assert (limits.links, limits.handshake_s, limits.half_open) == (3, 2.5, Limits().half_open)


@pytest.mark.parametrize(
    "changes", [{"nothing": "1"}, {"links": "0"}, {"links": "-1"}, {"links": "many"}, {"links": "1.5"}, {"window_packets": "255"}]
)
def test_bad_limit_is_named(settings, changes):
    """An unknown name, what is no positive number, and a window no peer would take are refused."""
    settings.ARK_LIMITS = changes
    with pytest.raises(ImproperlyConfigured, match="ARK_LIMIT_"):
        conf.limits()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_limit_that_is_no_number_is_named(settings, value):
    """A limit that nothing ever reaches, or everything does, is none."""
    settings.ARK_LIMITS = {"handshake_s": value}
    with pytest.raises(ImproperlyConfigured, match="ARK_LIMIT_HANDSHAKE_S"):
        conf.limits()
