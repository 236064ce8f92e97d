"""Resume points (loader/protocol.md, The cursor): where in an epoch of a plan the next sample is."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from typing import NamedTuple

from .errors import BobbinError

_FORMAT = struct.Struct(">B32s32sIQ")
_CHECK_BYTES = 8
_VERSION = 1


class Cursor(NamedTuple):
    """``position`` is that of the next sample in its epoch, from 0."""

    top_hash: str
    plan_id: str
    epoch: int
    position: int

    def __str__(self) -> str:
        body = _FORMAT.pack(
            _VERSION, bytes.fromhex(self.top_hash), bytes.fromhex(self.plan_id), self.epoch, self.position
        )
        return base64.urlsafe_b64encode(body + _check(body)).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises INVALID_ARGUMENT for what is no cursor, or a damaged one."""
        try:
            raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        body, check = raw[: _FORMAT.size], raw[_FORMAT.size :]
        if len(raw) != _FORMAT.size + _CHECK_BYTES or check != _check(body) or body[0] != _VERSION:
            raise BobbinError("INVALID_ARGUMENT", f"not a cursor, or a damaged one: {text!r}")
        _, top_hash, plan_id, epoch, position = _FORMAT.unpack(body)
        return cls(top_hash.hex(), plan_id.hex(), epoch, position)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"bobbin-cursor-1\0" + body).digest()[:_CHECK_BYTES]
