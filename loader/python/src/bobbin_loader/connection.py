"""One keep-alive connection to a sidecar, over a unix socket or TCP."""

from __future__ import annotations

import base64
import errno
import http.client
import json
import math
import os
import socket
from typing import Any, List, NamedTuple, Optional, Tuple
from urllib.parse import unquote, urlsplit

from .encoding import Answer, plain
from .errors import BobbinError, Cut, damaged

# Where systemd/bobbin-loader.socket listens.
_UNIT_SOCKET = "/run/bobbin-loader/loader.sock"
_CONNECT_S = 10.0
# More than the sidecar's own --step-timeout (30 s), after which it says that it needs more time.
_ANSWER_S = 120.0
# No socket is there (yet).
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
# Asking again does not help.
_PERMANENT = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EPROTOTYPE}
# However long a sidecar wants to be left alone: who waits looks at the time between.
_RETRY_MAX_S = 60.0


class Address(NamedTuple):
    """Where a sidecar listens; ``socket_path`` is empty for TCP."""

    socket_path: str
    host: str
    port: int
    token: str
    #: When nobody said where it is: the sockets to choose from, each time anew until one of them has answered.
    sockets: Tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: Optional[str] = None) -> Address:
        """``unix:/path`` or ``http://host:port``; without it BOBBIN_SIDECAR, then the sockets of ``own_sockets``.

        A token comes from the URL (``http://bobbin:TOKEN@host:port``) or from BOBBIN_LOADER_TOKEN.
        """
        text = text or os.environ.get("BOBBIN_SIDECAR")
        if not text:
            sockets = own_sockets()
            return cls(sockets[0], "bobbin", 80, "", tuple(sockets))
        token = os.environ.get("BOBBIN_LOADER_TOKEN", "")
        if text.startswith("unix:"):
            return cls(text[len("unix:") :], "bobbin", 80, "")
        if text.startswith("/"):
            return cls(text, "bobbin", 80, "")
        url = urlsplit(text)
        if url.scheme != "http" or not url.hostname:
            raise BobbinError("INVALID_ARGUMENT", f"a sidecar is unix:/path or http://host:port, not {text!r}")
        return cls("", url.hostname, url.port or 80, unquote(url.password or "") or token)

    def __str__(self) -> str:
        return f"unix:{self.socket_path}" if self.socket_path else f"http://{self.host}:{self.port}"


def own_sockets() -> List[str]:
    """Where ``bobbin loader`` listens unless it is told to listen elsewhere: in the cache, or as a systemd unit.

    The cache is the command line's (cli/settings.ts), but for its config file.
    """
    environ = os.environ
    cache = environ.get("BOBBIN_CACHE") or environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if not cache:
        xdg = environ.get("XDG_CACHE_HOME", "")
        home = _home()
        base = xdg if os.path.isabs(xdg) else home and os.path.join(home, ".cache")
        # A user without a home has no cache that nobody has named.
        cache = base and os.path.join(base, "bobbin")
    own = [os.path.join(os.path.abspath(cache), "loader", "loader.sock")] if cache else []
    return [*own, _UNIT_SOCKET]


def _home() -> str:
    """Of this user, or nothing: containers run programs as numbers that have no name and no home."""
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):
        return ""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, connect_s: float) -> None:
        super().__init__("bobbin", timeout=connect_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Connection:
    """``send``, then ``receive``; what is sent while the caller works is answered meanwhile.

    Of one process and one thread. A connection that failed is made anew by the next ``send``.
    """

    def __init__(self, address: Address, *, answer_s: float = _ANSWER_S) -> None:
        self.address = address
        self._answer_s = answer_s
        #: What was connected to last: one of the address's choices.
        self.used = address
        self._pid = os.getpid()
        self._http: Optional[http.client.HTTPConnection] = None
        self._headers = {}
        if address.token:
            credentials = base64.b64encode(f"bobbin:{address.token}".encode()).decode()
            self._headers["authorization"] = f"Basic {credentials}"

    def send(self, method: str, path: str, *, body: Optional[Any] = None, accept: str = "*/*") -> None:
        """Raises Cut when nobody listens, SIDECAR_UNREACHABLE when asking again is of no use."""
        headers = {**self._headers, "accept": accept}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        if self._pid != os.getpid():
            # The socket is our parent's, too.
            self._http, self._pid = None, os.getpid()
        try:
            if self._http is None:
                self._http = self._connect()
            self._http.request(method, path, body=data, headers=headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if isinstance(error, OSError) and error.errno in _PERMANENT:
                raise unreachable(f"{self.address} may not be opened by this user ({error.strerror})") from error
            raise Cut(str(error)) from error

    def receive(self) -> Answer:
        """The answer to what was sent: read it to its end. Raises Refused for a problem, Cut where there is none."""
        assert self._http is not None, "nothing was sent"
        try:
            response = self._http.getresponse()
            answer = plain(response, str(self.used))
            if response.status < 300:
                return answer
            raise refused(response.status, response.getheader("retry-after"), answer.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Cut(str(error)) from error

    def json(self, method: str, path: str, body: Optional[Any] = None) -> Any:
        """One document. Raises Refused, Cut, ANSWER_DAMAGED."""
        self.send(method, path, body=body)
        response = self.receive()
        try:
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Cut(str(error)) from error
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise damaged(
                f"what answered {method} {path} at {self.used} may be no sidecar: it is not JSON ({text[:40]!r})"
            ) from error

    def close(self) -> None:
        """Forgets what was sent and not received."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _connect(self) -> http.client.HTTPConnection:
        """To the first socket that is there and may be opened. Raises OSError, SIDECAR_UNREACHABLE, Cut."""
        choices = self.address.sockets
        if not choices:
            self.used = self.address
            return _connected(self.address, self._answer_s)
        problems, denied = [], 0
        for path in choices:
            one = self.address._replace(socket_path=path, sockets=())
            try:
                connection = _connected(one, self._answer_s)
            except OSError as error:
                if error.errno in _PERMANENT:
                    denied += 1
                    problems.append(f"this user may not open {path} ({error.strerror})")
                elif error.errno in _ABSENT:
                    problems.append(f"there is no socket {path}")
                else:
                    raise Cut(f"{path}: {error}") from error
            else:
                self.used = one
                return connection
        if denied == len(choices):
            raise unreachable(", ".join(problems))
        # This user's own loader may be just starting.
        raise Cut(", ".join(problems))


def _connected(address: Address, answer_s: float) -> http.client.HTTPConnection:
    connect_s = min(_CONNECT_S, answer_s)
    if address.socket_path:
        connection: http.client.HTTPConnection = _UnixConnection(address.socket_path, connect_s)
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=connect_s)
    connection.connect()
    connection.sock.settimeout(answer_s)
    return connection


def unreachable(reason: str) -> BobbinError:
    return BobbinError(
        "SIDECAR_UNREACHABLE",
        f"{reason}: is `bobbin loader` running there, for this user, and is its socket bound into this container? "
        "BOBBIN_SIDECAR says where it is",
    )


class Refused(BobbinError):
    """An answer that is a problem; ``retry_after`` in seconds, where asking again later may help."""

    def __init__(self, code: str, detail: str, status: int, retry_after: Optional[float] = None) -> None:
        super().__init__(code, detail, status)
        self.retry_after = retry_after


def refused(status: int, retry_text: Optional[str], body: bytes) -> Refused:
    try:
        problem = json.loads(body)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        code, detail = "SIDECAR_UNREACHABLE", body[:200].decode("utf-8", "replace")
    retry_after = None
    if status in (429, 503):
        try:
            retry_after = float(retry_text or 1)
        except ValueError:
            retry_after = 1.0
        retry_after = min(max(retry_after, 0.0), _RETRY_MAX_S) if math.isfinite(retry_after) else 1.0
    return Refused(code, detail, status, retry_after)
