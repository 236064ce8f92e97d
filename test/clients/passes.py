"""Passes of a dataset with some number of workers, of which torch says no more than what `get_worker_info` gives.

Without torch: a worker is a copy of the dataset here, which has the dataset's place in common with it, as a process has.
"""

import copy
import types
from contextlib import contextmanager

from bobbin_loader import BobbinDataset, Plan, place
from checks import equal, options, refused

plan = Plan.create(options()["reference"], global_batch=40, seed=5)
steps = list(range(plan.steps_per_epoch))


@contextmanager
def worker(number, total):
    before = place.torch, getattr(place, "get_worker_info", None)
    place.torch = types.SimpleNamespace()
    place.get_worker_info = lambda: types.SimpleNamespace(id=number, num_workers=total)
    try:
        yield
    finally:
        place.torch, place.get_worker_info = before


def begin(dataset, number, total):
    with worker(number, total):
        return iter(copy.copy(dataset))


def read(dataset, total):
    """The epochs of a pass, and its steps; without workers for 0."""
    passes = [begin(dataset, k, total) for k in range(total)] or [iter(dataset)]
    batches = [batch for one in passes for batch in one]
    return sorted({b.epoch for b in batches}), sorted(b.step for b in batches)


def fresh():
    return BobbinDataset(plan, batched=True, rank=0, world=1)


for workers in (1, 2):
    dataset = fresh()
    next(begin(dataset, 0, workers))
    with refused(f"how far {workers} workers are is not known to who has begun them", "INVALID_ARGUMENT", "batch.cursor"):
        dataset.state_dict()
    with worker(0, workers):
        equal(f"one of {workers} knows where it begins next", plan.place(dataset.state_dict()["cursor"]), (1, 0))
