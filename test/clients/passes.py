"""Passes of a dataset with some number of workers, without torch: of it only `get_worker_info` matters here.

A worker is a copy of the dataset that has its place in common with it, as a process has.
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
    with refused(f"who has begun {workers} workers cannot tell where they are", "INVALID_ARGUMENT", "batch.cursor"):
        dataset.state_dict()
    with worker(0, workers):
        equal(f"one of {workers} knows where it begins next", plan.place(dataset.state_dict()["cursor"]), (1, 0))

dataset = fresh()
for number, workers in enumerate((1, 1, 0, 2, 2, 0, 0, 4, 4)):
    equal(f"pass {number}, of {workers} workers, is over epoch {number}", read(dataset, workers), ([number], steps))
with refused("another number of workers than in the pass before", "INVALID_ARGUMENT", "4 workers", "2", "set_epoch"):
    read(dataset, 2)
dataset.set_epoch(7)
equal("with the epoch set they read it", read(dataset, 2), ([7], steps))
with refused("also more of them", "INVALID_ARGUMENT", "2 workers", "set_epoch"):
    read(dataset, 4)
dataset.load_state_dict({"cursor": plan.cursor(3, 2)})
equal("or behind a cursor", read(dataset, 4), ([3], steps[2:]))

dataset = fresh()
first = next(iter(dataset))
read(dataset, 2)
with refused("a pass of ours is no place of the workers after it", "INVALID_ARGUMENT", "batch.cursor"):
    dataset.state_dict()
