"""A reader's leases at its sidecar, let go when it is closed, or when Python ends with it still open.

Python's own clean-up of a generator comes too late for that: the modules that a request needs may be gone by then.
What is open is therefore closed before, by ``atexit``, and nothing is asked afterwards. A process that was forked from
the reader's leaves its leases alone. Without all that a sidecar lets them go after two minutes.
"""

from __future__ import annotations

import atexit
import os
import secrets
import weakref
from typing import Dict, Optional

from .connection import Connection
from .errors import BobbinError, Cut

# How long the end of a program may wait for a sidecar that does not answer.
_AT_EXIT_S = 2.0


class Leases:
    """Those of one session, which are asked for on ``connection``."""

    def __init__(self, connection: Connection) -> None:
        #: The one that came last: the next request gives it back, and those before it.
        self.last: Optional[str] = None
        #: The program ends, and nothing is to be done any more.
        self.is_over = False
        self._session = secrets.token_hex(8)
        self._connection = connection
        self._pid = os.getpid()
        self._may_be_held = False
        _all.add(self)

    def question(self) -> Dict[str, str]:
        """What to ask for paths with, besides the paths."""
        self._may_be_held = True
        released = {} if self.last is None else {"release": self.last}
        return {"session": self._session, **released}

    def release(self) -> None:
        self._release(self._connection)

    def end(self) -> None:
        """Before Python's own end."""
        self.is_over = True
        self._release(Connection(self._connection.address, answer_s=_AT_EXIT_S))

    def _release(self, connection: Connection) -> None:
        if not self._may_be_held or self._pid != os.getpid():
            return
        self._may_be_held, self.last = False, None
        try:
            connection.json("DELETE", f"/v1/sessions/{self._session}")
        except (Cut, BobbinError):
            pass


_all: "weakref.WeakSet[Leases]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for leases in list(_all):
        leases.end()
