"""Cut anywhere, resumed on another world with other workers: the same global batches, each sample once.

Ranks and workers are read one after the other, as the dataset does it: worker k of n takes steps k, k + n, ...
"""

import random

from bobbin_loader import Plan
from checks import check, equal, options

given = options()
WORLDS, WORKERS = (1, 2, 3, 4, 8), (0, 1, 2, 4)
random.seed(given["seed"])


def names(batch):
    return [(s.position, s.is_pad, s.logical_keys["jpg"]) for s in batch.samples]


def stretch(plan, cursor, world, workers, end, transport):
    """Global batches from a cursor to a step, and the cursor behind them, as every rank has it."""
    epoch, start = plan.place(cursor)
    steps = {}
    cursors = set()
    for rank in range(world):
        for worker in range(max(workers, 1)):
            first, stride = start + worker, max(workers, 1)
            batches = plan.batches(epoch=epoch, step=first, rank=rank, world=world, stride=stride, transport=transport)
            for batch in batches:
                if batch.step >= end:
                    break
                steps.setdefault(batch.step, {})[rank] = names(batch)
                if batch.step == end - 1:
                    cursors.add(batch.cursor)
            batches.close()
    assert len(cursors) <= 1, cursors
    joined = {step: [s for rank in range(world) for s in parts[rank]] for step, parts in steps.items()}
    return joined, (cursors.pop() if cursors else cursor)


wrong, cases = [], 0
for tail in ("pad", "drop", "uneven"):
    plan = Plan.create(given["reference"], global_batch=24, seed=11, tail=tail)
    total = plan.steps_per_epoch
    epochs = {}
    for epoch in range(3):
        whole = {b.step: names(b) for b in plan.batches(epoch=epoch)}
        real = [name for step in whole.values() for _, pad, name in step if not pad]
        lost = plan.samples % 24 if tail == "drop" else 0
        equal(f"{tail}, epoch {epoch}: no sample twice", len(set(real)), len(real))
        equal(f"{tail}, epoch {epoch}: none lost but for a dropped tail", len(real), len(given["keys"]) - lost)
        epochs[epoch] = whole
    for world in WORLDS:
        for workers in WORKERS:
            for _ in range(given["cuts"]):
                cases += 1
                epoch = random.randrange(3)
                cut = random.randrange(0, total + 1)
                transport = random.choice(("paths", "tar"))
                first, cursor = stretch(plan, plan.cursor(epoch, 0), world, workers, cut, transport)
                other = (random.choice(WORLDS), random.choice(WORKERS))
                if cut == total:
                    second = {}
                    if plan.place(cursor) != (epoch + 1, 0):
                        wrong.append((tail, world, workers, cut, "the cursor is not that of the next epoch"))
                else:
                    second, _ = stretch(plan, cursor, *other, total, transport)
                if set(first) & set(second) or {**first, **second} != epochs[epoch]:
                    wrong.append((tail, epoch, world, workers, cut, other, transport))
equal(f"{cases} cuts, each resumed on another world", wrong, [])
check("as many as there should be", cases >= given["cases"], cases)
