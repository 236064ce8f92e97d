"""Where a dataset's next pass begins: set in the training process, seen by every worker of its DataLoader."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

try:
    import torch
    from torch.utils.data import get_worker_info
except ImportError:  # pragma: no cover
    torch = None

_WORKERS_MAX = 1024
_NOT_SET = -1


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


class Start(NamedTuple):
    epoch: int
    step: int
    #: Samples of that step that were given already.
    sample: int


class Place:
    """The start that was set, then the epochs after it, one a pass.

    Shared memory (a torch tensor, where there is torch), because persistent workers are copies of the dataset that are
    never made anew: ``epoch, step, sample`` as set, then for each worker the epoch of its next pass.
    """

    def __init__(self) -> None:
        size = 3 + 1 + _WORKERS_MAX
        self._words: Any = [0] * size if torch is None else torch.zeros(size, dtype=torch.int64).share_memory_()
        self.set(Start(0, 0, 0))

    def set(self, start: Start) -> None:
        words: List[int] = [*start] + [_NOT_SET] * (1 + _WORKERS_MAX)
        if torch is None:
            self._words[:] = words
        else:
            self._words[:] = torch.tensor(words, dtype=torch.int64)

    def get(self, slot: Optional[int] = None) -> Start:
        """Of a worker's next pass; without a slot, of what was set."""
        next_epoch = _NOT_SET if slot is None else int(self._words[3 + slot])
        if next_epoch != _NOT_SET:
            return Start(next_epoch, 0, 0)
        epoch, step, sample = (int(word) for word in self._words[:3])
        return Start(epoch, step, sample)

    def begin(self, slot: int, epoch: int) -> None:
        """A pass over an epoch begins: the worker's next one is over the next."""
        self._words[3 + slot] = epoch + 1

    def is_with_workers(self) -> bool:
        """Whether workers have begun a pass since the start was set."""
        return any(int(word) != _NOT_SET for word in self._words[4:])
