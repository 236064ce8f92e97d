"""Hashes of objects, as Quilt's manifests have them."""

from __future__ import annotations

import hashlib

from .errors import damaged

_CHUNK_BYTES_MIN = 8 * 2**20
_CHUNKS_MAX = 10_000


def check_object(content: bytes, hash_text: str, name: str) -> None:
    """Raises ANSWER_DAMAGED unless the bytes have the hash ``<type>:<hex>``.

    CRC64NVME is not computed: in Python it would be slower than any disk. The sidecar's daemon has checked it.
    """
    kind, _, expected = hash_text.partition(":")
    if kind == "SHA256":
        actual = hashlib.sha256(content).hexdigest()
    elif kind == "sha2-256-chunked":
        actual = _chunked(content)
    else:
        return
    if actual != expected:
        raise damaged(f"{name}: its {kind} is {actual}, the package says {expected}")


def _chunked(content: bytes) -> str:
    """SHA-256 over the SHA-256 of each chunk: 8 MiB each, doubled while there would be over 10,000 of them."""
    chunk_bytes = _CHUNK_BYTES_MIN
    while -(-len(content) // chunk_bytes) > _CHUNKS_MAX:
        chunk_bytes *= 2
    whole = hashlib.sha256()
    view = memoryview(content)
    for start in range(0, len(content), chunk_bytes):
        whole.update(hashlib.sha256(view[start : start + chunk_bytes]).digest())
    return whole.hexdigest()
