"""One-time passwords: issued at the first start, replaced at the first login.

The mark is set here and cleared by Django itself: a validator listed in AUTH_PASSWORD_VALIDATORS is
told of every new password, whether it came through the admin, a form or `manage.py changepassword`,
and not of a mere upgrade of the hash. `arklattice.middleware` holds a marked user at the change page.
"""

import secrets

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.exceptions import ValidationError
from django.db import transaction

from arklattice.models import OneTimePassword

# 20 letters and digits without look-alikes: 20 * log2(54), some 115 bits, easy to copy from a terminal.
ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
LENGTH = 20


@transaction.atomic
def make_admin(username: str) -> str | None:
    """Create the first administrator and return its one-time password; None when there is an administrator already."""
    users = get_user_model()
    if users.objects.filter(is_superuser=True).exists():
        return None
    password = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
    user = users.objects.create_superuser(username, password=password)
    OneTimePassword.objects.create(user=user)
    return password


def must_change_password(user: AbstractBaseUser | AnonymousUser) -> bool:
    """Return whether this user still has the password that was printed at the first start."""
    return user.pk is not None and OneTimePassword.objects.filter(user_id=user.pk).exists()


class OneTimePasswordValidator:
    """Refuses to keep a one-time password, and clears the mark when another one is set."""

    def validate(self, password: str, user: AbstractBaseUser | None = None) -> None:
        if user is not None and user.pk is not None and must_change_password(user) and user.check_password(password):
            raise ValidationError("Choose a password other than the one-time password.", code="one_time_password")

    def get_help_text(self) -> str:
        return "Your password can’t be a one-time password."

    def password_changed(self, password: str, user: AbstractBaseUser | None = None) -> None:
        if user is not None and user.pk is not None:
            OneTimePassword.objects.filter(user_id=user.pk).delete()
