"""How long to go on asking a sidecar that is away, or not ready."""

from __future__ import annotations

import logging
import random
import time
from typing import Optional, Union

from .connection import Address, Refused, unreachable
from .errors import Cut

log = logging.getLogger("bobbin_loader")

_FIRST_S = 0.05
_LONGEST_S = 5.0


class Patience:
    """Waits longer each time, until ``seconds`` have passed without progress."""

    def __init__(self, address: Address, seconds: float) -> None:
        self._address = address
        self._seconds = seconds
        self._since: Optional[float] = None
        self._next = _FIRST_S
        # The first wait tells whoever wonders why nothing goes on; the others are for who wants to know more.
        self._level = logging.WARNING

    def progress(self) -> None:
        self._since, self._next = None, _FIRST_S

    def wait(self, error: Union[Cut, Refused]) -> None:
        """Returns when it is time to ask again; raises what the matter is when it is of no use."""
        if isinstance(error, Refused) and error.retry_after is None:
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now
            advice = "" if isinstance(error, Refused) else " (is `bobbin loader` running there?)"
            log.log(self._level, "%s: %s; asking again for up to %g s%s", self._address, error, self._seconds, advice)
            self._level = logging.INFO
        if now - self._since >= self._seconds:
            if isinstance(error, Refused):
                raise error
            raise unreachable(f"no answer from {self._address} for {self._seconds:g} s ({error})") from error
        asked = error.retry_after if isinstance(error, Refused) else None
        time.sleep(asked if asked is not None else self._next * random.uniform(0.5, 1))
        self._next = min(self._next * 2, _LONGEST_S)
