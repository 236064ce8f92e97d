"""Answers that a proxy on the way has encoded, though the client asks for them as they are."""

from __future__ import annotations

import gzip
import http.client
import zlib
from typing import Union

from .errors import damaged


class Inflated:
    """What was gzipped, with the ``read`` of an answer. Raises ConnectionResetError when it ends early."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._file = gzip.GzipFile(fileobj=response, mode="rb")

    def read(self, count: int = -1) -> bytes:
        try:
            return self._file.read(count)
        except EOFError as error:
            raise ConnectionResetError("the gzipped answer ended early") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise damaged(f"the gzipped answer cannot be unpacked ({error})") from error


Answer = Union[http.client.HTTPResponse, Inflated]


def plain(response: http.client.HTTPResponse, address: str) -> Answer:
    """The answer as the sidecar gave it. Raises ANSWER_DAMAGED for an encoding that is not known here."""
    encoding = (response.getheader("content-encoding") or "identity").strip().lower()
    if encoding == "identity":
        return response
    if encoding in ("gzip", "x-gzip"):
        return Inflated(response)
    raise damaged(
        f"the answer from {address} came with the content-encoding {encoding}, which was not asked for: tell the proxy "
        "on the way to pass such answers as they are"
    )
