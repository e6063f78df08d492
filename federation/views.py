"""Pages of the HTTP port that other nodes and programs read."""

import time

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from federation.conf import own_manifest
from keys.ed25519 import KeysError
from keys.services import load_identity


@require_safe
def well_known(request: HttpRequest) -> HttpResponse:
    """Serve this node's signed manifest: `{"manifest": {…}, "signature": hex}`.

    The signature covers the manifest's canonical bytes, embedded as they were signed; 503 while there is no key.

    Source: docs/protocol.md, section 1.
    """
    try:
        signed = own_manifest(load_identity(), issued_at=time.time_ns() // 1_000_000)
    except KeysError:
        return JsonResponse({"error": "this node has no usable key"}, status=503)
    body = b'{"manifest":' + signed.body + b',"signature":"' + signed.signature.hex().encode() + b'"}'
    return HttpResponse(body, content_type="application/json")
