"""A plan: which samples, in which order, in what batches. Two sidecars give one plan the same id."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any, Dict, Iterator, List, Optional, Sequence, Union

from .batches import Batch, Sample
from .connection import Address, Connection, Refused
from .cursor import Cursor
from .errors import BobbinError, Cut, damaged
from .patience import Patience
from .stream import BatchStream, SamplesReader

_START_S = 30.0
_HASH = re.compile(r"[0-9a-f]{64}")
# Of what is put into commands that a shell sees.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.{}-]+")
# Six digits (loader/protocol.md).
_SHARDS_MAX = 1_000_000
_TEXTS = ("planId", "package", "topHash", "shards", "objects")
_NUMBERS = ("samples", "entries", "bytes", "stepsPerEpoch", "maxStepBytes", "shardsPerEpoch")


class Plan:
    """Made by ``create``. Pickles: a copy in another process has its own connections."""

    plan_id: str
    #: ``s3://BUCKET/NS/NAME@<64 hex>``
    package: str
    top_hash: str
    #: In an epoch, without those that the tail repeats.
    samples: int
    entries: int
    bytes: int
    #: Of ``bytes``, how many were in the store when the plan was made; None where that is not known.
    bytes_cached: Optional[int]
    steps_per_epoch: int
    max_step_bytes: int
    global_batch: int
    #: The sidecar's folder of objects, as it sees it.
    objects: str
    #: The normalised plan, whose hash is ``plan_id``.
    document: Dict[str, Any]

    def __init__(self, body: Dict[str, Any], sidecar: Address) -> None:
        self.address = sidecar
        self._body = body
        self._connection: Optional[Connection] = None

    @classmethod
    def create(
        cls,
        package: str,
        *,
        top_hash: Optional[str] = None,
        select: Union[str, Sequence[str]] = ("**",),
        exclude: Union[str, Sequence[str]] = (),
        where: Optional[str] = None,
        group: str = "stem",
        order: str = "qperm-1",
        seed: Union[int, str] = 0,
        global_batch: int = 256,
        tail: str = "pad",
        on_missing: str = "fail",
        meta: Optional[str] = "json",
        sidecar: Optional[str] = None,
        patience: float = _START_S,
    ) -> Plan:
        """Makes the plan, or finds it.

        ``package``: any spelling of bobbin's command line, ``s3://BUCKET/NS/NAME@HASH``, ``./FOLDER/NS/NAME``.
        ``select``, ``exclude``: globs on logical keys. ``where``: JMESPath over ``{key, size, hash, meta}``.
        ``group``: ``stem`` or ``entry``. ``order``: ``qperm-1`` (shuffled) or ``sequential``. ``tail``: ``pad``,
        ``drop`` or ``uneven``. ``on_missing``: ``fail`` or ``mark``. ``meta``: the suffix of the metadata member in
        tars, None for none. ``sidecar``: ``unix:/path`` or ``http://host:port``, else BOBBIN_SIDECAR, else where
        ``bobbin loader`` of this user or as a unit listens. ``patience``: seconds to wait for a sidecar that is just
        starting.
        """
        body: Dict[str, Any] = {
            # The sidecar would take it from its own folder.
            "package": os.path.abspath(package) if package.startswith(("./", "../")) else package,
            "select": [select] if isinstance(select, str) else list(select),
            "exclude": [exclude] if isinstance(exclude, str) else list(exclude),
            "where": where,
            "group": {"by": group},
            "order": {"algo": order, "seed": str(seed)} if order == "qperm-1" else {"algo": order},
            "batch": {"global": global_batch, "tail": tail},
            "onMissing": on_missing,
            "meta": meta,
        }
        if top_hash is not None:
            body["topHash"] = top_hash
        plan = cls(body, Address.parse(sidecar))
        plan._take(plan.ask("POST", "/v1/plans", body, patience=patience))
        plan._settle()
        return plan

    def batch_size(self, world: int = 1) -> int:
        """Samples of one rank in a full step. Raises INVALID_ARGUMENT unless the world divides the global batch."""
        if world < 1 or self.global_batch % world:
            raise BobbinError(
                "INVALID_ARGUMENT", f"{world} ranks do not divide the global batch of {self.global_batch} samples"
            )
        return self.global_batch // world

    def cursor(self, epoch: int = 0, step: int = 0) -> str:
        """The resume point before a step; behind the last one it is the start of the next epoch."""
        if step >= self.steps_per_epoch:
            epoch, step = epoch + 1, 0
        return str(Cursor(self.top_hash, self.plan_id, epoch, step * self.global_batch))

    def place(self, cursor: str) -> "tuple[int, int]":
        """Epoch and step of a cursor. Raises CURSOR_FOREIGN for one of another plan or package."""
        parsed = Cursor.parse(cursor)
        if (parsed.top_hash, parsed.plan_id) != (self.top_hash, self.plan_id):
            raise BobbinError(
                "CURSOR_FOREIGN",
                f"the cursor is of plan {parsed.plan_id[:16]}… of top hash {parsed.top_hash[:16]}…, "
                f"this is plan {self.plan_id[:16]}… of {self.top_hash[:16]}…",
            )
        return parsed.epoch, parsed.position // self.global_batch

    def batches(
        self,
        *,
        epoch: int = 0,
        step: int = 0,
        cursor: Optional[str] = None,
        rank: int = 0,
        world: int = 1,
        stride: int = 1,
        transport: str = "auto",
        verify: Optional[bool] = None,
        patience: float = 600.0,
    ) -> Iterator[Batch]:
        """A rank's batches, from a step (or a cursor) to the end of that epoch, each ``stride``-th.

        ``transport``: ``paths`` reads the store's own files, ``tar`` streams; ``auto`` takes paths where
        BOBBIN_OBJECTS, or the sidecar's own folder of objects, can be read here. ``verify``: hash what was received; by
        default tar is hashed and paths are not, since the sidecar names only what was hashed. ``patience``: seconds
        without progress, over restarts of the sidecar, before SIDECAR_UNREACHABLE is raised.
        """
        if cursor is not None:
            epoch, step = self.place(cursor)
        return BatchStream(
            self,
            epoch=epoch,
            step=step,
            rank=rank,
            world=world,
            stride=stride,
            transport=self.transport(transport),
            verify=verify,
            patience=patience,
        ).batches()

    def samples_at(self, positions: Sequence[int], *, epoch: int = 0, transport: str = "auto") -> List[Sample]:
        """Samples by position in an epoch, in the order asked for."""
        reader = SamplesReader(self, self.transport(transport))
        try:
            return reader.read(epoch, positions)
        finally:
            reader.close()

    def shard_urls(self, *, epoch: int = 0, rank: int = 0, world: int = 1) -> List[str]:
        """What to give to ``webdataset.WebDataset(..., shardshuffle=False)``: the rank's part of an epoch."""
        names = [
            self._shards.replace("{epoch}", str(epoch))
            .replace("{world}", str(world))
            .replace("{rank}", str(rank))
            .replace("{shard}", "%06d" % shard)
            for shard in range(self.shards_per_epoch)
        ]
        address = self.address
        if address.socket_path:
            curl = "curl --silent --show-error --fail --retry 10 --retry-connrefused --unix-socket"
            socket_path = shlex.quote(address.socket_path)
            return [f"pipe:{curl} {socket_path} http://bobbin/wds/{name}" for name in names]
        login = f"bobbin:{address.token}@" if address.token else ""
        return [f"http://{login}{address.host}:{address.port}/wds/{name}" for name in names]

    def transport(self, wish: str = "auto") -> str:
        """``tar``, or the folder of objects to read below, as it is here."""
        if wish not in ("auto", "paths", "tar"):
            raise BobbinError("INVALID_ARGUMENT", f"a transport is auto, paths or tar, not {wish!r}")
        if wish == "tar":
            return "tar"
        objects = os.environ.get("BOBBIN_OBJECTS") or self.objects
        if os.access(objects, os.R_OK | os.X_OK):
            return objects
        if wish == "auto":
            return "tar"
        raise BobbinError(
            "INVALID_ARGUMENT",
            f"paths: {objects} cannot be read here. Bind the sidecar's folder of objects into this container, "
            "read-only, and say in BOBBIN_OBJECTS where it is",
        )

    def ask(self, method: str, path: str, body: Optional[Any] = None, *, patience: float = _START_S) -> Any:
        """A document from the sidecar, as often as it takes. Raises BobbinError."""
        if self._connection is None:
            self._connection = Connection(self.address)
        waiting = Patience(self.address, patience)
        while True:
            try:
                return self._connection.json(method, path, body)
            except (Cut, Refused) as error:
                waiting.wait(error)

    def post_again(self) -> None:
        """Makes the plan known to a sidecar that has forgotten it; it has to be the same one."""
        again = self.ask("POST", "/v1/plans", {**self._body, "package": self.package, "topHash": self.top_hash})
        if again["planId"] != self.plan_id:
            raise BobbinError("PLAN_NOT_FOUND", f"the sidecar makes another plan of it now: {again['planId']}")

    def _settle(self) -> None:
        """From here on the sidecar is the one that answered."""
        assert self._connection is not None
        self.address = self._connection.address = self._connection.used

    def _take(self, facts: Dict[str, Any]) -> None:
        _check(facts)
        self.plan_id = facts["planId"]
        self.package = facts["package"]
        self.top_hash = facts["topHash"]
        self.samples = facts["samples"]
        self.entries = facts["entries"]
        self.bytes = facts["bytes"]
        self.bytes_cached = facts["bytesCached"]
        self.steps_per_epoch = facts["stepsPerEpoch"]
        self.max_step_bytes = facts["maxStepBytes"]
        self.shards_per_epoch = facts["shardsPerEpoch"]
        self.objects = facts["objects"]
        self.document = facts["plan"]
        self.global_batch = self.document["batch"]["global"]
        self._shards = facts["shards"]

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    def __repr__(self) -> str:
        return (
            f"<Plan {self.plan_id[:16]} of {self.package}: {self.samples} samples, "
            f"{self.steps_per_epoch} steps of {self.global_batch}>"
        )


def _check(facts: Any) -> None:
    """What listens may be no sidecar, and its words become requests, commands and sizes. Raises ANSWER_DAMAGED."""
    if not isinstance(facts, dict):
        raise damaged("the answer is not a plan")
    problems = [name for name in _TEXTS if not isinstance(facts.get(name), str)]
    problems += [name for name in _NUMBERS if type(facts.get(name)) is not int or facts[name] < 0]
    if not problems:
        problems += [name for name in ("planId", "topHash") if not _HASH.fullmatch(facts[name])]
        problems += [] if _SHARD_NAME.fullmatch(facts["shards"]) else ["shards"]
        problems += [] if facts["shardsPerEpoch"] <= _SHARDS_MAX else ["shardsPerEpoch"]
    document = facts.get("plan")
    batch = document.get("batch") if isinstance(document, dict) else None
    count = batch.get("global") if isinstance(batch, dict) else None
    if type(count) is not int or count < 1:
        problems.append("plan")
    if problems:
        raise damaged(f"the sidecar's answer has no plan's {', '.join(problems)}")
