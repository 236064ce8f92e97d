"""A rank's batches, step after step, over whatever happens to the sidecar."""

from __future__ import annotations

import hashlib
import http.client
import json
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import urlencode

from .batches import Batch, Sample, read_index, samples_of_line, steps_of_tar
from .connection import Connection, Refused
from .encoding import Answer
from .errors import BobbinError, Cut, damaged
from .leases import Leases
from .patience import Patience, log
from .tar import TarReader

if TYPE_CHECKING:
    from .plan import Plan

PATHS = "application/vnd.bobbin.paths+ndjson"
TAR = "application/x-tar"

# One answer: enough samples that its round trip is little beside reading them, few enough that the leases are.
_SAMPLES_AN_ANSWER = 256
_BYTES_AN_ANSWER = 64 * 2**20
_STEPS_MAX = 64
# ,"sha256":"<64 hex>"}
_CHECK_BYTES = 77
# Steps whose files could not be opened, one after the other: the store is not what it was taken for.
_MISSES_MAX = 8


class BatchStream:
    """Asks for some steps at a time, and for the next ones before the caller works on those that came.

    Without threads: what was asked for is prepared by the sidecar while the caller is busy, and waits in the socket.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        epoch: int,
        step: int,
        rank: int,
        world: int,
        stride: int,
        transport: str,
        verify: Optional[bool],
        patience: float,
        until: Optional[int] = None,
    ) -> None:
        batch = plan.batch_size(world)
        if not 0 <= rank < world:
            raise BobbinError("INVALID_ARGUMENT", f"there is no rank {rank} of {world}; ranks begin at 0")
        self._plan = plan
        self._epoch, self._step = epoch, step
        self._until = plan.steps_per_epoch if until is None else until
        self._rank, self._world, self._stride = rank, world, stride
        self._objects = "" if transport == "tar" else transport
        self._verify = verify
        self._connection = Connection(plan.address)
        self._seconds = patience
        self._patience = Patience(plan.address, patience)
        self._leases = Leases(self._connection)
        self._asked: Optional[Tuple[int, bool]] = None
        self._misses = 0
        step_bytes = max(1, plan.max_step_bytes // world)
        self._count_max = max(1, min(_STEPS_MAX, _SAMPLES_AN_ANSWER // batch, _BYTES_AN_ANSWER // step_bytes))
        # The first answer is one step, to have it soon.
        self._count = 1

    def batches(self) -> Iterator[Batch]:
        try:
            while self._step < self._until:
                try:
                    for samples in self._answer():
                        step = self._step
                        self._step += self._stride
                        self._patience.progress()
                        yield Batch(samples, self._epoch, step, self._plan.cursor(self._epoch, step + 1))
                except (Cut, Refused) as error:
                    self._connection.close()
                    self._asked = None
                    if isinstance(error, Refused) and error.code == "PLAN_NOT_FOUND":
                        self._plan.post_again()
                    else:
                        self._patience.wait(error)
        finally:
            self._close()

    def _answer(self) -> Iterator[List[Sample]]:
        return self._from_paths() if self._objects else self._from_tar()

    def _from_paths(self) -> Iterator[List[Sample]]:
        lines = _lines_of(self._receive(PATHS))
        leases = [line["lease"] for line in lines]
        # While the caller works on these steps the next ones are made ready. Those before them are done with.
        self._ask_for(self._step + len(lines) * self._stride, PATHS)
        for line in lines:
            if line["step"] != self._step or line["epoch"] != self._epoch:
                raise damaged(f"step {self._step} of epoch {self._epoch} was asked for, not {line['step']}")
            yield self._samples(line)
        self._leases.last = leases[-1]

    def _samples(self, line: Dict[str, Any]) -> List[Sample]:
        try:
            samples = samples_of_line(line, self._objects, bool(self._verify))
            self._misses = 0
            return samples
        except OSError as error:
            # The sidecar or its daemon was started anew, and its leases went with it; or the folder is another one.
            self._misses += 1
            if self._misses == 1:
                log.warning("step %d is read as tar: %s", line["step"], error)
            if self._misses == _MISSES_MAX:
                log.warning("%s is not the sidecar's folder of objects: tar from here on", self._objects)
                self._objects = ""
                self._forget()
            return self._tar_step()

    def _tar_step(self) -> List[Sample]:
        """One step on a connection of its own, since the next answer is on its way on the other."""
        stream = BatchStream(
            self._plan,
            epoch=self._epoch,
            step=self._step,
            rank=self._rank,
            world=self._world,
            stride=self._stride,
            transport="tar",
            verify=self._verify,
            patience=self._seconds,
            until=self._step + 1,
        )
        (batch,) = stream.batches()
        samples: List[Sample] = batch.samples
        return samples

    def _from_tar(self) -> Iterator[List[Sample]]:
        plan = self._plan
        reader = TarReader(self._receive(TAR))
        index = read_index(reader)
        steps = index.steps
        expected = [self._step + i * self._stride for i in range(len(steps))]
        if (index.plan_id, index.top_hash, index.epoch) != (plan.plan_id, plan.top_hash, self._epoch):
            raise damaged("the answer is of another plan or epoch")
        if steps != expected or not steps:
            raise damaged(f"steps {expected} were asked for, not {steps}")
        got = 0
        for step, samples in steps_of_tar(reader, index, plan.document["meta"], self._verify is not False):
            # A rank may have no sample in the last step, with the tail `uneven`.
            while got < len(steps) - 1 and steps[got] != step:
                got += 1
                yield []
            got += 1
            if got == len(steps):
                self._ask_for(steps[-1] + self._stride, TAR)
            yield samples
        while got < len(steps):
            got += 1
            yield []

    def _receive(self, accept: str) -> Answer:
        if self._asked != (self._step, accept == PATHS):
            self._forget()
            self._ask(self._step, accept)
        self._asked = None
        return self._connection.receive()

    def _ask_for(self, step: int, accept: str) -> None:
        self._count = min(self._count * 2, self._count_max)
        if step < self._until:
            try:
                self._ask(step, accept)
            except Cut:
                # It is asked again when its turn comes.
                self._asked = None

    def _ask(self, step: int, accept: str) -> None:
        query: Dict[str, Any] = {
            "epoch": self._epoch,
            "step": step,
            "rank": self._rank,
            "world": self._world,
            "n": self._count,
            "stride": self._stride,
        }
        if accept == PATHS:
            query.update(self._leases.question())
        path = f"/v1/plans/{self._plan.plan_id}/batches?{urlencode(query)}"
        self._connection.send("GET", path, accept=accept)
        self._asked = (step, accept == PATHS)

    def _forget(self) -> None:
        if self._asked is not None:
            self._connection.close()
            self._asked = None

    def _close(self) -> None:
        """Lets the leases go, so that the store need not wait until they time out."""
        if self._leases.is_over:
            return
        self._forget()
        self._leases.release()
        self._connection.close()


class SamplesReader:
    """Samples by their positions, one request each time."""

    def __init__(self, plan: Plan, transport: str, patience: float = 600.0) -> None:
        self._plan = plan
        self._objects = "" if transport == "tar" else transport
        self._connection = Connection(plan.address)
        self._patience = Patience(plan.address, patience)
        self._leases = Leases(self._connection)

    def read(self, epoch: int, positions: Sequence[int]) -> List[Sample]:
        self._patience.progress()
        body: Dict[str, Any] = {"epoch": epoch, "positions": [int(position) for position in positions]}
        while True:
            try:
                if self._objects:
                    try:
                        return self._from_paths(body)
                    except OSError as error:
                        log.warning("positions are read as tar: %s", error)
                return self._from_tar(body)
            except (Cut, Refused) as error:
                self._connection.close()
                if isinstance(error, Refused) and error.code == "PLAN_NOT_FOUND":
                    self._plan.post_again()
                else:
                    self._patience.wait(error)

    def close(self) -> None:
        """Lets the lease of what was read last go, which another ``read`` would have done."""
        self._leases.release()
        self._connection.close()

    def _from_paths(self, body: Dict[str, Any]) -> List[Sample]:
        lines = _lines_of(self._ask({**body, **self._leases.question()}, PATHS))
        self._leases.last = lines[0]["lease"]
        return samples_of_line(lines[0], self._objects, False)

    def _from_tar(self, body: Dict[str, Any]) -> List[Sample]:
        reader = TarReader(self._ask(body, TAR))
        index = read_index(reader)
        return [
            sample
            for _, samples in steps_of_tar(reader, index, self._plan.document["meta"], True)
            for sample in samples
        ]

    def _ask(self, body: Dict[str, Any], accept: str) -> Answer:
        self._connection.send("POST", f"/v1/plans/{self._plan.plan_id}/samples", body=body, accept=accept)
        return self._connection.receive()


def _lines_of(response: Answer) -> List[Dict[str, Any]]:
    """A line a step. Raises ANSWER_DAMAGED, and Cut unless the last line says that it is the last."""
    try:
        *lines, end = response.read().splitlines() or [b"{}"]
        is_whole = bool(lines) and json.loads(end).get("end")
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        raise Cut(f"the answer was cut ({error})") from error
    if not is_whole:
        raise Cut("the answer was cut")
    for line in lines:
        # Its last member is the hash of what is before that.
        text = line[:-_CHECK_BYTES]
        if line[-_CHECK_BYTES:] != b',"sha256":"%b"}' % hashlib.sha256(text).hexdigest().encode():
            raise damaged("a line of paths and metadata is not what was sent")
    return [json.loads(line) for line in lines]
