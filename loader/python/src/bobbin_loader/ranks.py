"""Which rank of how many a dataset is for."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from .errors import BobbinError


class Rank(NamedTuple):
    number: int
    world: int
    #: Somebody gave it; else it was found, and has to stay what torch.distributed says.
    is_given: bool

    @classmethod
    def of(cls, number: Optional[int], world: Optional[int]) -> Rank:
        """What is given, or what torch.distributed says, or RANK and WORLD_SIZE, or 0 of 1."""
        if number is not None and world is not None:
            return cls(number, world, True)
        if number is not None or world is not None:
            raise BobbinError("INVALID_ARGUMENT", "give rank and world, or neither")
        found = _of_torch()
        if found is not None:
            return found
        environ = os.environ
        world = int(environ.get("WORLD_SIZE", "1"))
        if world > 1 and "RANK" not in environ:
            raise BobbinError(
                "INVALID_ARGUMENT",
                f"WORLD_SIZE is {world}, and RANK is not set: make the dataset after torch.distributed is initialised "
                "(with Lightning: in train_dataloader), or give it rank and world",
            )
        return cls(int(environ.get("RANK", "0")), world, False)

    def check(self) -> None:
        """Raises INVALID_ARGUMENT when torch.distributed was initialised since, and says otherwise."""
        found = None if self.is_given else _of_torch()
        if found is not None and found != self:
            raise BobbinError(
                "INVALID_ARGUMENT",
                f"this dataset was made for rank {self.number} of {self.world} before torch.distributed was "
                f"initialised, and this is rank {found.number} of {found.world}: make the dataset afterwards (with "
                "Lightning: in train_dataloader), or give it rank and world",
            )


def _of_torch() -> Optional[Rank]:
    try:
        import torch.distributed as distributed
    except ImportError:
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return Rank(distributed.get_rank(), distributed.get_world_size(), False)
