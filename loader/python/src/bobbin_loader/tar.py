"""Reads the sidecar's tar: ustar members one after the other, with nothing taken on trust."""

from __future__ import annotations

import http.client
from typing import NamedTuple, Optional

from .encoding import Answer
from .errors import Cut, damaged

_BLOCK = 512


class Member(NamedTuple):
    name: str
    content: bytes


class TarReader:
    """``next`` gives the next member, None behind the last. Raises Cut when the answer ends before."""

    def __init__(self, response: Answer) -> None:
        self._response = response
        #: Bytes read so far.
        self.read = 0

    def next(self) -> Optional[Member]:
        header = self._take(_BLOCK)
        if header[0] == 0:
            self._take(_BLOCK)
            if self._response.read(1):
                raise damaged("there is something behind the end of the tar")
            return None
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        size = _number(header[124:136], name)
        if _checksum(header) != _number(header[148:156], name):
            raise damaged(f"the tar header of {name!r} has a wrong checksum")
        padded = -(-size // _BLOCK) * _BLOCK
        content = self._take(padded)
        return Member(name, content if size == padded else content[:size])

    def _take(self, count: int) -> bytes:
        try:
            data = self._response.read(count) if count else b""
        except (OSError, http.client.HTTPException) as error:
            raise Cut(f"the answer was cut after {self.read} bytes ({error})") from error
        self.read += len(data)
        if len(data) != count:
            raise Cut(f"the answer was cut after {self.read} bytes")
        return data


def _number(field: bytes, name: str) -> int:
    # Base 256, for sizes from 8 GiB on.
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise damaged(f"the tar header of {name!r} is none") from None


def _checksum(header: bytes) -> int:
    """With its own field, eight bytes, taken as spaces."""
    return sum(header) - sum(header[148:156]) + 8 * 32
