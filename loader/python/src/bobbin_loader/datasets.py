"""Datasets for torch's DataLoader and torchdata's StatefulDataLoader; plain iterables and sequences without torch."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from .batches import Sample
from .errors import BobbinError
from .layers import is_prepared, is_restored, refuse_second
from .place import Place, Start, Worker
from .plan import Plan
from .ranks import Rank
from .tuples import kept

try:
    from torch.utils.data import Dataset, IterableDataset
except ImportError:  # pragma: no cover

    class Dataset:  # type: ignore[no-redef]
        pass

    class IterableDataset:  # type: ignore[no-redef]
        pass


Decode = Callable[[Sample], Any]
Collate = Callable[[List[Any]], Any]


class BobbinDataset(IterableDataset):  # type: ignore[misc]
    """A rank's samples of an epoch, in the plan's order; each pass is over the next epoch.

    Worker k of n takes steps k, k + n, ...: whatever the number of workers, a DataLoader gives the same batches in the
    same order, with ``batched=True`` and ``batch_size=None``, or with ``batch_size=plan.batch_size(world)``.

    ``decode(sample)`` and, when batched, ``collate(samples)`` run in the worker. ``rank`` and ``world`` are those of
    torch.distributed when it is initialised, else RANK and WORLD_SIZE, else 0 of 1. Where another layer divides among
    ranks (accelerate's ``prepare``), give 0 and 1, or that layer is refused. The other arguments are those of
    ``Plan.batches``.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        rank: Optional[int] = None,
        world: Optional[int] = None,
        decode: Optional[Decode] = None,
        batched: bool = False,
        collate: Optional[Collate] = None,
        transport: str = "auto",
        verify: Optional[bool] = None,
        patience: float = 600.0,
    ) -> None:
        super().__init__()
        if collate is not None and not batched:
            raise BobbinError("INVALID_ARGUMENT", "collate is for batched=True; DataLoader has its own collate_fn")
        self.plan = plan
        self._rank = Rank.of(rank, world)
        self.rank, self.world = self._rank.number, self._rank.world
        self.batch_size = plan.batch_size(self.world)
        self._decode, self._batched, self._collate = decode, batched, collate
        self._options: Dict[str, Any] = {"transport": transport, "verify": verify, "patience": patience}
        self._place = Place()
        # In a worker that was given a state of its own (StatefulDataLoader): where its next pass begins.
        self._own: Optional[Start] = None
        # How far the pass is that is under way, or that has ended in a worker.
        self._now: Optional[Start] = None
        # A pass was made here since the start was set, though perhaps it was not read.
        self._is_used = False

    def set_epoch(self, epoch: int) -> None:
        """The next pass is over this epoch, from its start.

        A prepared DataLoader of accelerate does that before each pass, counting from 0. It does not move a dataset that
        ``load_state_dict`` put into that epoch. Raises INVALID_ARGUMENT when the dataset is to go on in another one.
        """
        self._check_caller()
        loaded = None if self._is_used else self._place.unread()
        if loaded not in (None, Start(0, 0, 0)) and is_prepared():
            if loaded.epoch == epoch:
                return
            raise BobbinError(
                "INVALID_ARGUMENT",
                f"the prepared DataLoader begins epoch {epoch}, and this dataset is to go on in epoch {loaded.epoch}: "
                f"call set_epoch({loaded.epoch}) of the prepared DataLoader before its first pass",
            )
        self._restart(Start(epoch, 0, 0))

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Of ``state_dict``, or ``{"cursor": batch.cursor}``. Raises CURSOR_FOREIGN for one of another plan."""
        epoch, step = self.plan.place(state["cursor"])
        # Nothing is left of the pass, and it is for the caller to end it.
        start = Start(epoch - 1, self.plan.steps_per_epoch, 0) if state.get("isOver") else Start(epoch, step, 0)
        start = start._replace(sample=int(state.get("sample", 0)))
        worker = Worker.here()
        if state.get("workers", worker.total) != worker.total or state.get("worker", worker.number) != worker.number:
            raise BobbinError(
                "INVALID_ARGUMENT",
                f"the state is of worker {state.get('worker')} of {state.get('workers')}, this is {worker.number} of "
                f"{worker.total}: to go on with another number of workers, keep batch.cursor in the checkpoint",
            )
        if worker.slot == 0:
            self._restart(start)
            return
        if "workers" not in state:
            start = worker.part_of(start)
        self._own, self._now = start, None
        # StatefulDataLoader makes workers of an epoch that had ended, asks them for nothing and makes others: those are
        # told by this where to begin.
        self._place.begin(worker, start.epoch)

    def state_dict(self) -> Dict[str, Any]:
        """Where to go on, with as many workers. With any number: ``{"cursor": batch.cursor}``."""
        worker = Worker.here()
        if worker.slot == 0 and self._place.is_with_workers():
            raise BobbinError(
                "INVALID_ARGUMENT",
                "workers read this dataset, and only they know how far they are: keep {'cursor': batch.cursor} of the "
                "last batch (batched=True), or use torchdata's StatefulDataLoader",
            )
        epoch, step, sample = self._now or self._next(worker)
        state: Dict[str, Any] = {"cursor": self.plan.cursor(epoch, step), "sample": sample}
        if step >= self.plan.steps_per_epoch:
            state["isOver"] = True
        if worker.total > 1:
            state.update(worker=worker.number, workers=worker.total)
        return state

    def __iter__(self) -> Iterator[Any]:
        """A pass, which begins when something is taken from it: one that was only made is no pass."""
        self._check_caller()
        self._now, self._is_used = None, True
        return self._pass(Worker.here())

    def __len__(self) -> int:
        self._check_caller()
        if self._batched:
            return self.plan.steps_per_epoch
        # With the tail `uneven` the last step has what is left.
        full, left = divmod(self.plan.samples, self.plan.global_batch)
        if self.plan.document["batch"]["tail"] != "uneven" or left == 0:
            return self.plan.steps_per_epoch * self.batch_size
        return full * self.batch_size + (self.rank + 1) * left // self.world - self.rank * left // self.world

    def _check_caller(self) -> None:
        self._rank.check()
        refuse_second(self.world, Worker.here().total, self._batched)

    def _next(self, worker: Worker) -> Start:
        if self._own is not None:
            return self._own
        return worker.part_of(self._place.get(worker))

    def _pass(self, worker: Worker) -> Iterator[Any]:
        start = self._next(worker)
        self._place.begin(worker, start.epoch)
        self._own, self._now = None, start
        plan, stride = self.plan, worker.total
        batches = plan.batches(
            epoch=start.epoch, step=start.step, rank=self.rank, world=self.world, stride=stride, **self._options
        )
        skip = start.sample
        for batch in batches:
            behind = Start(batch.epoch, batch.step + stride, 0)
            samples = batch.samples if self._decode is None else [self._decode(sample) for sample in batch.samples]
            if self._batched:
                self._now = behind
                yield batch._replace(samples=kept(samples if self._collate is None else self._collate(samples)))
                continue
            for i, sample in enumerate(samples[skip:], skip + 1):
                self._now = behind if i == len(samples) else Start(batch.epoch, batch.step, i)
                yield sample
            skip = 0
        # StatefulDataLoader asks a worker again that was at its end, and has to find it there. Without workers it
        # begins the next pass.
        self._now = Start(start.epoch, plan.steps_per_epoch, 0) if worker.slot else Start(start.epoch + 1, 0, 0)

    def _restart(self, start: Start) -> None:
        self._own, self._now, self._is_used = None, None, False
        self._place.set(start)


class BobbinMapDataset(Dataset):  # type: ignore[misc]
    """A rank's samples of one epoch by number, already in the plan's order: use no shuffling sampler.

    Number i is sample i % b of step i // b, where b is ``plan.batch_size(world)``. DataLoader asks for a whole batch in
    one request.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        rank: Optional[int] = None,
        world: Optional[int] = None,
        decode: Optional[Decode] = None,
        transport: str = "auto",
    ) -> None:
        super().__init__()
        self.plan = plan
        self._rank = Rank.of(rank, world)
        self.rank, self.world = self._rank.number, self._rank.world
        self.batch_size = plan.batch_size(self.world)
        if self.world > 1 and plan.document["batch"]["tail"] == "uneven":
            raise BobbinError("INVALID_ARGUMENT", "several ranks by number need the tail pad or drop, not uneven")
        self._decode, self._transport = decode, transport
        self._place = Place()
        self._reader: Any = None
        self._reader_pid = 0

    def set_epoch(self, epoch: int) -> None:
        self._place.set(Start(epoch, 0, 0))

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Number 0 is then the first sample behind the cursor. Raises CURSOR_FOREIGN for one of another plan.

        A StatefulDataLoader does it when its next pass begins: an epoch that ended before its state was saved gives way
        to the next one, where ``set_epoch`` has named that since.
        """
        epoch, step = self.plan.place(state["cursor"])
        told = self._place.unread()
        if told == Start(epoch + 1, 0, 0) and (Worker.here().slot > 0 or is_restored()):
            return
        self._place.set(Start(epoch, step, 0))

    def state_dict(self) -> Dict[str, Any]:
        """Which epoch, and where in it number 0 is; how far a sampler has come is the sampler's to remember."""
        epoch, step, _ = self._place.get()
        return {"cursor": self.plan.cursor(epoch, step)}

    def __len__(self) -> int:
        # Every sampler asks for it, those that divide among ranks as well.
        self._rank.check()
        refuse_second(self.world)
        return self._length()

    def _length(self) -> int:
        plan, (_, step, _) = self.plan, self._place.get()
        if plan.document["batch"]["tail"] == "uneven":
            return plan.samples - step * plan.global_batch
        return (plan.steps_per_epoch - step) * self.batch_size

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> List[Any]:
        from .stream import SamplesReader

        if self._reader is None or self._reader_pid != os.getpid():
            self._reader = SamplesReader(self.plan, self.plan.transport(self._transport))
            self._reader_pid = os.getpid()
        epoch, first, _ = self._place.get()
        self._place.mark_read()
        length = self._length()
        positions = []
        for number in numbers:
            if not -length <= number < length:
                raise IndexError(f"there are {length} samples, not number {number}")
            step, slot = divmod(number % length, self.batch_size)
            positions.append((first + step) * self.plan.global_batch + self.rank * self.batch_size + slot)
        samples = self._reader.read(epoch, positions)
        return samples if self._decode is None else [self._decode(sample) for sample in samples]

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_reader": None}
