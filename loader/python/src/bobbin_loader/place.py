"""Where a dataset's next pass begins: set in the training process, seen by every worker of its DataLoader."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

from .errors import BobbinError

try:
    import torch
    from torch.utils.data import get_worker_info
except ImportError:  # pragma: no cover
    torch = None

_WORKERS_MAX = 1024
_NOT_SET = -1
# Of a Place's words: how many workers, where the epochs begin, and how many words there are.
_WORKERS = 3
_NEXT = 4
_SIZE = _NEXT + 1 + _WORKERS_MAX


class Start(NamedTuple):
    epoch: int
    step: int
    #: Samples of that step that were given already.
    sample: int


class Worker(NamedTuple):
    number: int
    #: Of all workers; 1 also where the DataLoader has none.
    total: int
    #: Its own in a Place, from 1; 0 is the training process's, which is told from a DataLoader's only worker by it.
    slot: int

    @classmethod
    def here(cls) -> Worker:
        info = None if torch is None else get_worker_info()
        return cls(0, 1, 0) if info is None else cls(info.id, info.num_workers, 1 + info.id)

    def part_of(self, start: Start) -> Start:
        """Where this worker begins when all of them begin there."""
        return Start(start.epoch, start.step + self.number, start.sample if self.number == 0 else 0)


class Place:
    """The start that was set, then the epochs after it, one a pass.

    Shared memory (a torch tensor, where there is torch), because persistent workers are copies of the dataset that are
    never made anew: ``epoch, step, sample`` as set, how many workers read since then, then for the training process and
    for each worker the epoch of its next pass. Workers begin when they like, and know nothing of each other: they agree
    on an epoch only where as many of them have read before, or none.
    """

    def __init__(self) -> None:
        self._words: Any = [0] * _SIZE if torch is None else torch.zeros(_SIZE, dtype=torch.int64).share_memory_()
        self.set(Start(0, 0, 0))

    def set(self, start: Start) -> None:
        words: List[int] = [*start] + [_NOT_SET] * (_SIZE - _WORKERS)
        if torch is None:
            self._words[:] = words
        else:
            self._words[:] = torch.tensor(words, dtype=torch.int64)

    def get(self, worker: Optional[Worker] = None) -> Start:
        """Of a worker's next pass; without one, of what was set."""
        if worker is not None:
            # A pass of the training process takes back what its workers knew: theirs, where there is any, is the later.
            ours, *theirs = (int(word) for word in self._words[_NEXT:])
            next_epoch = theirs[worker.slot - 1] if worker.slot else max(theirs)
            if next_epoch == _NOT_SET:
                next_epoch = ours
            if next_epoch != _NOT_SET:
                return Start(next_epoch, 0, 0)
        epoch, step, sample = (int(word) for word in self._words[:_WORKERS])
        return Start(epoch, step, sample)

    def unread(self) -> Optional[Start]:
        """What was set, as long as no pass has begun since."""
        return None if any(int(word) != _NOT_SET for word in self._words[_WORKERS:]) else self.get()

    def mark_read(self) -> None:
        """Samples were read by number: no pass begins, but the start is no longer unread."""
        self._words[_WORKERS] = 0

    def begin(self, worker: Worker, epoch: int) -> None:
        """A pass over an epoch begins: the worker's next one is over the next. Raises INVALID_ARGUMENT."""
        if worker.slot == 0:
            for i in range(_WORKERS, _SIZE):
                self._words[i] = _NOT_SET
        else:
            before = int(self._words[_WORKERS])
            if before not in (_NOT_SET, worker.total):
                raise BobbinError(
                    "INVALID_ARGUMENT",
                    f"{before} workers read this dataset before, and {worker.total} do not know which epoch is next: "
                    "call set_epoch, or load_state_dict with the cursor of a batch, before this pass",
                )
            self._words[_WORKERS] = worker.total
        self._words[_NEXT + worker.slot] = epoch + 1

    def is_with_workers(self) -> bool:
        """Whether workers have begun a pass since the start was set, and the training process none after them."""
        return int(self._words[_WORKERS]) != _NOT_SET
