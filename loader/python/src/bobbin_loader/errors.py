"""The one error of this package."""

from __future__ import annotations


class BobbinError(Exception):
    """What the sidecar refused, or what was wrong with what it sent.

    ``code`` is one of the sidecar's (``PLAN_NOT_FOUND``, ``OBJECT_CORRUPT``, ...), or of ours:
    ``SIDECAR_UNREACHABLE``, ``ANSWER_DAMAGED``. ``status`` is the HTTP status, 0 where there was none.
    """

    def __init__(self, code: str, detail: str, status: int = 0) -> None:
        super().__init__(code, detail, status)
        self.code = code
        self.detail = detail
        self.status = status

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Cut(Exception):
    """The answer ended early, or not at all: ask again from where it went wrong. Says not who was asked."""


def damaged(what: str) -> BobbinError:
    """Bytes that are not what the package says. Asking again is of no use: the store was checked before."""
    return BobbinError("ANSWER_DAMAGED", what)
