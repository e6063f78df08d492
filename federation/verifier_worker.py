"""A process that verifies Ed25519 signatures and does nothing else.

Reads requests from standard input and answers on standard output until the input ends, which it does when
the parent dies, however it dies. A request is a 4-byte big-endian length and that many bytes of MessagePack,
an array of [message, signature 64, public key 32]; the answer is one byte for each, 1 where the signature
holds. It imports the core only, so it starts in milliseconds and knows no secret.
"""

import os
import sys

import msgspec

from keys.ed25519 import InvalidSignatureError, verify

LENGTH_BYTES = 4

Triples = list[tuple[bytes, bytes, bytes]]
_decode = msgspec.msgpack.Decoder(Triples).decode


def main() -> None:
    read, write = sys.stdin.buffer.read, sys.stdout.buffer
    while len(header := read(LENGTH_BYTES)) == LENGTH_BYTES:
        request = read(int.from_bytes(header, "big"))
        try:
            triples = _decode(request)
            write.write(bytes(_holds(message, signature, public_key) for message, signature, public_key in triples))
            write.flush()
        except (msgspec.DecodeError, BrokenPipeError):
            # The parent died in the middle. Nothing is left to say, and flushing at exit would complain.
            os._exit(0)


def _holds(message: bytes, signature: bytes, public_key: bytes) -> bool:
    try:
        verify(public_key, message, signature)
    except InvalidSignatureError:
        return False
    return True


if __name__ == "__main__":
    main()
