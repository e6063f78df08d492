"""What every HTTP response and every signed-in request of port 8102 goes through."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import StaticFile

from arklattice.passwords import must_change_password

GetResponse = Callable[[HttpRequest], HttpResponse]

# Everything the pages need is served from here; Django's admin works under it without exception.
# Inline script and style, frames around the admin, a changed base and foreign form targets are refused.
CONTENT_SECURITY_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"


class ContentSecurityPolicyMiddleware:
    """Set the policy on every response that has none of its own."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        return response


class PasswordChangeMiddleware:
    """Send a user with a one-time password to the change page, whatever else was asked for.

    Only the change page itself and logging out stay open.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        change, logout = reverse("admin:password_change"), reverse("admin:logout")
        user = request.user
        if user.is_authenticated and request.path not in {change, logout} and must_change_password(user):
            return redirect(change)
        return self.get_response(request)


class StaticFilesMiddleware(WhiteNoiseMiddleware):
    """WhiteNoise, answering with the whole file at once.

    Its own response streams from an open file synchronously, which under ASGI is read whole anyway,
    with a warning on each request. The files are the admin's few stylesheets, scripts and icons.
    """

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> HttpResponseBase:
        answer = static_file.get_response(request.method, request.META)
        content = b""
        if answer.file is not None:
            with answer.file:
                content = answer.file.read()
        response = HttpResponse(content, status=int(answer.status))
        # WhiteNoise knows the type of every file; Django's default would claim HTML.
        del response["Content-Type"]
        for key, value in answer.headers:
            response[key] = value
        return response
