"""Other layers that divide a dataset among ranks or workers, as ours does by itself.

accelerate, HF Trainer, Lightning, Ray Train and others wrap a dataset, or its sampler, so that each rank keeps its part
of what comes. A dataset that gives a rank's part already would be divided twice, and most samples would be lost without
a word. A wrapper does not tell the dataset; but while it uses the dataset, it is a ``self`` on the call stack, in the
training process and in workers alike. That is where it is looked for: when a pass is made, when the length is asked
for, and when an epoch is set. Wrappers are known by name, since nothing here may import them.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

from .errors import BobbinError


class _Kind(NamedTuple):
    #: The wrapper's attribute that says into how many parts it divides.
    parts: str
    advice: str
    #: It divides among the workers of a DataLoader as well.
    is_of_workers: bool = False


_WHOLE = "let that layer divide alone: rank=0, world=1 for this dataset, and batches of plan.batch_size({parts})"
_OF_ACCELERATE = (
    "Leave its DataLoader out of accelerator.prepare (with HF Trainer: return it from get_train_dataloader), "
    f"or {_WHOLE}"
)
# By package and class; a subclass is one, too.
_KINDS: Dict[Tuple[str, str], _Kind] = {
    ("accelerate", "DataLoaderDispatcher"): _Kind("state.num_processes", _OF_ACCELERATE),
    ("accelerate", "IterableDatasetShard"): _Kind("num_processes", _OF_ACCELERATE),
    ("accelerate", "BatchSamplerShard"): _Kind("num_processes", _OF_ACCELERATE),
    ("transformers", "IterableDatasetShard"): _Kind("num_processes", _OF_ACCELERATE),
    ("torch", "DistributedSampler"): _Kind(
        "num_replicas",
        "Use no DistributedSampler (Lightning: Trainer(use_distributed_sampler=False); Ray Train: "
        f"prepare_data_loader(add_dist_sampler=False)), or {_WHOLE}",
    ),
    ("torch", "ShardingFilterIterDataPipe"): _Kind(
        "num_of_instances", f"Leave sharding_filter() out, or {_WHOLE}", is_of_workers=True
    ),
    # `_distributed` is None unless split_dataset_by_node set it.
    ("datasets", "IterableDataset"): _Kind(
        "_distributed.world_size", f"Leave split_dataset_by_node out, or {_WHOLE}", is_of_workers=True
    ),
}
# The base of what accelerate's `prepare` makes.
_PREPARED = ("accelerate", "DataLoaderAdapter")


# What goes on where its state was saved, and restores its dataset only when the next pass begins.
_RESTORING = ("torchdata", "_StatefulBaseDataLoaderIter")


def refuse_second(world: int, workers: int = 1, gives_batches: bool = False) -> None:
    """Raises INVALID_ARGUMENT when the caller is a wrapper that divides, and the dataset is one of several parts."""
    for wrapper in _wrappers():
        for name, kind in _KINDS.items():
            if _is_a(wrapper, name):
                reason = _reason(wrapper, name[0], kind, world, workers, gives_batches)
                if reason is not None:
                    raise BobbinError("INVALID_ARGUMENT", reason)


def is_prepared() -> bool:
    """Whether the caller is a DataLoader of accelerate: it counts its passes from 0, and sets the epoch before each."""
    return any(_is_a(wrapper, _PREPARED) for wrapper in _wrappers())


def is_restored() -> bool:
    """Whether the caller is a StatefulDataLoader in the training process."""
    return any(_is_a(wrapper, _RESTORING) for wrapper in _wrappers())


def _reason(wrapper: Any, package: str, kind: _Kind, world: int, workers: int, gives_batches: bool) -> Optional[str]:
    parts = _parts(wrapper, kind)
    name = f"{package}'s {type(wrapper).__name__}"
    advice = kind.advice.format(parts=parts)
    if gives_batches and package != "datasets":
        return (
            f"{name} makes and divides batches of samples, and this dataset gives whole batches (batched=True) with "
            f"their epoch, step and cursor. {advice}, and batched=False"
        )
    if world > 1 and parts > 1:
        return (
            f"{name} divides this dataset into {parts} parts, and the dataset is one of {world} parts already, so "
            f"that samples would be lost. {advice}"
        )
    if workers > 1 and kind.is_of_workers:
        return (
            f"{name} divides this dataset among {workers} workers, and the dataset does that by itself, so that "
            "samples would be lost. Use one worker, or give the DataLoader the dataset without that wrapper"
        )
    return None


def _parts(wrapper: Any, kind: _Kind) -> int:
    value = wrapper
    for attribute in kind.parts.split("."):
        value = None if value is None else getattr(value, attribute)
    return 1 if value is None else int(value)


def _wrappers() -> Iterator[Any]:
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        wrapper = frame.f_locals.get("self")
        if wrapper is not None:
            yield wrapper
        frame = frame.f_back


def _is_a(wrapper: Any, name: Tuple[str, str]) -> bool:
    return any((one.__module__.partition(".")[0], one.__name__) == name for one in type(wrapper).__mro__)
