"""torch's DataLoader and torchdata's StatefulDataLoader: any number of workers, one order."""

import pickle

from bobbin_loader import BobbinDataset, BobbinError, BobbinMapDataset, Plan
from checks import check, equal, options, refused
from torch.utils.data import DataLoader
from torch.utils.data._utils import pin_memory
from torchdata.stateful_dataloader import StatefulDataLoader


def label(sample):
    return sample.meta["jpg"]["name"]


def parts(sample):
    """A tuple, as most people's decode gives it, with another in a list and in a dict."""
    position = sample.position
    return position, [(position, "a")], {"pair": (position, "b")}, ()


def columns(samples):
    return tuple(zip(*samples))


def tuples_stay(plan):
    expected = [[parts(s) for s in b.samples] for b in plan.batches()]
    for workers in (0, 2):
        for method in ("fork", "spawn", "forkserver") if workers else (None,):
            loader = DataLoader(
                BobbinDataset(plan, decode=parts, batched=True),
                batch_size=None,
                num_workers=workers,
                multiprocessing_context=method,
            )
            got = [b.samples for b in loader]
            name = f"{workers} workers, {method}: what decode gives"
            equal(f"{name} is what arrives", got, expected)
            one = got[0][0]
            kinds = [type(x).__mro__[-2] for x in (one, one[1], one[1][0], one[2], one[2]["pair"], one[3])]
            equal(f"{name} is tuples where it was", kinds, [tuple, list, tuple, dict, tuple, tuple])
    pinned = pin_memory.pin_memory(next(iter(loader)))
    check("and after torch's pin_memory", isinstance(pinned.samples[0][2]["pair"], tuple), pinned.samples[0])
    collated = DataLoader(BobbinDataset(plan, decode=parts, batched=True, collate=columns), batch_size=None)
    equal("what collate gives, too", [b.samples for b in collated], [columns(samples) for samples in expected])
    again = pickle.loads(pickle.dumps(got[0]))
    check("they pickle", again == got[0] and isinstance(again[0], tuple), again[0])
    (position, *_), *_ = got[0]
    equal("unpack and print as tuples do", (position, repr(got[0][0])), (0, repr(expected[0][0])))


def main():
    given = options()
    plan = Plan.create(given["reference"], global_batch=24, seed=2)
    steps = plan.steps_per_epoch
    epochs = [[[label(s) for s in b.samples] for b in plan.batches(epoch=epoch)] for epoch in range(3)]

    def batched(**more):
        return BobbinDataset(plan, decode=label, batched=True, **more)

    tuples_stay(plan)
    for workers in (0, 1, 2, 4):
        loader = DataLoader(batched(), batch_size=None, num_workers=workers)
        equal(f"{workers} workers: whole batches, in order", [b.samples for b in loader], epochs[0])
        equal(f"{workers} workers: the next pass is over the next epoch", [b.samples for b in loader], epochs[1])
        loader.dataset.set_epoch(0)
        equal(f"{workers} workers: any epoch", [b.samples for b in loader], epochs[0])

    dataset = batched()
    equal("with 2 workers", [b.samples for b in DataLoader(dataset, batch_size=None, num_workers=2)], epochs[0])
    try:
        list(DataLoader(dataset, batch_size=None, num_workers=4))
        check("another number of workers has to be told the epoch", False)
    except RuntimeError as error:
        # Of a worker's error torch keeps the text.
        check("another number of workers has to be told the epoch", "set_epoch" in str(error), error)
    dataset.set_epoch(1)
    again = DataLoader(dataset, batch_size=None, num_workers=4)
    equal("told so, it reads it", [b.samples for b in again], epochs[1])
    equal("and without workers the one after it", [b.samples for b in dataset], epochs[2])

    samplewise = DataLoader(BobbinDataset(plan, decode=label), batch_size=24, num_workers=2)
    equal("samples that torch makes batches of", list(samplewise), epochs[0])
    persistent = DataLoader(batched(), batch_size=None, num_workers=2, persistent_workers=True)
    equal("persistent workers", [[b.samples for b in persistent] for _ in range(3)], epochs)
    persistent.dataset.set_epoch(1)
    equal("persistent workers are told the epoch", [b.samples for b in persistent], epochs[1])
    del persistent
    spawned = DataLoader(batched(), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    equal("workers that are no fork of us", [b.samples for b in spawned], epochs[0])
    undecoded = next(iter(DataLoader(BobbinDataset(plan, batched=True), batch_size=None, num_workers=1)))
    equal("samples come through torch as they are", [label(s) for s in undecoded.samples], epochs[0][0])

    for workers in (1, 2):
        loader = DataLoader(batched(), batch_size=None, num_workers=workers)
        for batch in loader:
            if batch.step == 4:
                break
        with refused(f"who cannot know how far {workers} workers are says so", "INVALID_ARGUMENT", "batch.cursor"):
            loader.dataset.state_dict()
    for workers in (0, 1, 4):
        again = DataLoader(batched(), batch_size=None, num_workers=workers)
        again.dataset.load_state_dict({"cursor": batch.cursor})
        equal(f"the cursor of a batch goes on with {workers} workers", [b.samples for b in again], epochs[0][5:])
        equal("and the epoch after it is whole", [b.samples for b in again], epochs[1])

    for workers in (0, 2):
        for cut in (1, 4, steps):
            loader = StatefulDataLoader(batched(), batch_size=None, num_workers=workers)
            seen, iterator = [], iter(loader)
            for _ in range(cut):
                seen.append(next(iterator).samples)
            state = pickle.loads(pickle.dumps(loader.state_dict()))
            del iterator
            again = StatefulDataLoader(batched(), batch_size=None, num_workers=workers)
            again.load_state_dict(state)
            rest = [b.samples for b in again]
            equal(f"StatefulDataLoader, {workers} workers, cut at {cut}", seen + rest, epochs[0])
            equal("and its next epoch is whole", [b.samples for b in again], epochs[1])
    # In the middle of a batch, samples being counted by torch.
    loader = StatefulDataLoader(BobbinDataset(plan, decode=label), batch_size=8, num_workers=2)
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(7)]
    state = loader.state_dict()
    again = StatefulDataLoader(BobbinDataset(plan, decode=label), batch_size=8, num_workers=2)
    again.load_state_dict(state)
    straight = list(StatefulDataLoader(BobbinDataset(plan, decode=label), batch_size=8, num_workers=2))
    equal("StatefulDataLoader, in the middle of a step", seen + list(again), straight)

    numbered = BobbinMapDataset(plan, decode=label)
    for workers in (0, 2):
        loader = DataLoader(numbered, batch_size=24, shuffle=False, num_workers=workers)
        equal(f"by number, {workers} workers", list(loader), epochs[0])
    halves = [list(DataLoader(BobbinMapDataset(plan, decode=label, rank=r, world=2), batch_size=12)) for r in (0, 1)]
    equal("by number, two ranks", [a + b for a, b in zip(*halves)], epochs[0])
    loader = StatefulDataLoader(numbered, batch_size=24, num_workers=2)
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(3)]
    again = StatefulDataLoader(BobbinMapDataset(plan, decode=label), batch_size=24, num_workers=2)
    again.load_state_dict(loader.state_dict())
    equal("StatefulDataLoader, by number", seen + list(again), epochs[0])

    for world in (1, 2, 3, 4, 8):
        for workers in (0, 1, 2):
            ranks = [
                [b.samples for b in DataLoader(batched(rank=r, world=world), batch_size=None, num_workers=workers)]
                for r in range(world)
            ]
            joined = [sum((rank[step] for rank in ranks), []) for step in range(steps)]
            equal(f"{world} ranks of {workers} workers: the same global batches", joined, epochs[0])

    try:
        for _ in DataLoader(BobbinDataset(plan, patience=1, rank=0, world=1, transport="tar"), num_workers=1):
            raise BobbinError("STOP", "as a training loop would")
    except BobbinError as error:
        check("an error in the loop stays that error", error.code == "STOP", error)


if __name__ == "__main__":
    main()
