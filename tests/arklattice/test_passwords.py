"""One-time passwords: held at the change page until replaced, by whichever door."""

import io

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from arklattice.models import OneTimePassword
from arklattice.passwords import ALPHABET, LENGTH, OneTimePasswordValidator, make_admin, must_change_password

pytestmark = pytest.mark.django_db

CHANGE = "/admin/password_change/"
NEW = "a-much-better-passphrase-1"


@pytest.fixture
def password():
    return make_admin("admin")


@pytest.fixture
def signed_in(password):
    client = Client()
    assert client.login(username="admin", password=password)
    return client


def administrator():
    return get_user_model().objects.get(username="admin")


def test_first_administrator_gets_a_password_of_some_115_bits(password):
    """The printed password has 20 characters of the alphabet without look-alikes."""
    assert len(password) == LENGTH
    assert set(password) <= set(ALPHABET)
    assert not set("0OIl") & set(ALPHABET)
    assert administrator().is_superuser
    assert must_change_password(administrator())


def test_second_start_makes_nobody(password):
    """Where an administrator exists, of whatever name, none is made and no password changes."""
    before = administrator().password
    assert make_admin("admin") is None
    assert make_admin("another") is None
    assert administrator().password == before
    assert get_user_model().objects.count() == 1


def test_every_page_leads_to_the_change_page(signed_in):
    """Until it is replaced, the one-time password opens the change page and nothing else."""
    for path in ["/admin/", "/admin/auth/user/", "/", "/admin/no-such-page/"]:
        response = signed_in.get(path)
        assert (response.status_code, response["Location"]) == (302, CHANGE), path
    page = signed_in.get(CHANGE)
    assert page.status_code == 200
    assert "This password was made for you" in page.content.decode()
    assert signed_in.post("/admin/auth/user/add/", {"username": "eve"}).status_code == 302
    assert get_user_model().objects.count() == 1


def test_logging_out_stays_possible(signed_in):
    """Someone with a one-time password may leave without changing it."""
    response = signed_in.post(reverse("admin:logout"))
    assert response.status_code == 200
    assert "_auth_user_id" not in signed_in.session


def test_changing_it_opens_the_admin(signed_in, password):
    """After the change the admin is open, in the same browser and after a new login."""
    response = signed_in.post(CHANGE, {"old_password": password, "new_password1": NEW, "new_password2": NEW})
    assert response.status_code == 302
    assert signed_in.get("/admin/").status_code == 200
    assert not OneTimePassword.objects.exists()
    again = Client()
    assert not again.login(username="admin", password=password)
    assert again.login(username="admin", password=NEW)
    assert again.get("/admin/").status_code == 200


def test_the_same_password_again_is_refused(signed_in, password):
    """The one-time password cannot be kept by typing it as the new one."""
    response = signed_in.post(CHANGE, {"old_password": password, "new_password1": password, "new_password2": password})
    assert "other than the one-time password" in response.content.decode()
    assert must_change_password(administrator())
    with pytest.raises(ValidationError, match="other than the one-time password"):
        OneTimePasswordValidator().validate(password, administrator())


def test_a_password_set_on_the_command_line_counts(password, monkeypatch):
    """`manage.py changepassword` replaces the one-time password too."""
    monkeypatch.setattr("getpass.getpass", lambda prompt="": NEW)
    call_command("changepassword", "admin", stdout=io.StringIO())
    assert not must_change_password(administrator())


def test_an_upgraded_hash_does_not_count(password, settings):
    """Logging in may re-hash the password with a newer hasher; it is still the one-time password."""
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.PBKDF2PasswordHasher",
        "django.contrib.auth.hashers.MD5PasswordHasher",
    ]
    assert Client().login(username="admin", password=password)
    assert administrator().password.startswith("pbkdf2_sha256$")
    assert must_change_password(administrator())


def test_others_are_not_held(password):
    """A user whose password was never a one-time password goes straight to the admin."""
    get_user_model().objects.create(username="ada", password=make_password(NEW), is_staff=True)
    client = Client()
    assert client.login(username="ada", password=NEW)
    assert client.get("/admin/").status_code == 200
