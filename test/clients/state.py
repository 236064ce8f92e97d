"""StatefulDataLoader's state, saved anywhere in an epoch or between two, goes on as if nobody had stopped."""

import itertools
import pickle

from bobbin_loader import BobbinDataset, BobbinMapDataset, Plan
from checks import equal, options
from torchdata.stateful_dataloader import StatefulDataLoader


def name(sample):
    # Of the entry, which tells an epoch from another, as its position does not.
    return sample.logical_keys["jpg"]


def as_is(batch):
    return batch


class Reader:
    """Passes of one loader. A pass is the list of what it gave."""

    def __init__(self, plan, batch_size, workers, persistent=False):
        self._is_batched = batch_size == "batched"
        self.loader = StatefulDataLoader(
            BobbinDataset(plan, batched=self._is_batched, decode=name, rank=0, world=1),
            batch_size=None if self._is_batched else batch_size,
            num_workers=workers,
            persistent_workers=persistent,
            collate_fn=as_is,
        )

    def take(self, count=None):
        items = itertools.islice(iter(self.loader), count)
        return [[item.epoch, item.step, item.samples] if self._is_batched else item for item in items]

    def take_until(self, epoch, taken):
        """To where `taken` were taken of the pass over `epoch`, or behind its end. Returns the state there."""
        for _ in range(epoch if taken is not None else epoch + 1):
            self.take()
        if taken is not None:
            self.take(taken)
        # As in a checkpoint.
        return pickle.loads(pickle.dumps(self.loader.state_dict()))


def by_number(plan, workers):
    """Samples by number, whose epochs the training loop sets, as it does with torch's own samplers."""

    def reader():
        dataset = BobbinMapDataset(plan, decode=name, rank=0, world=1)
        return dataset, StatefulDataLoader(dataset, batch_size=24, num_workers=workers, collate_fn=as_is)

    def passes_from(epoch, dataset, loader):
        for number in range(epoch, 3):
            dataset.set_epoch(number)
            yield list(loader)

    passes = list(passes_from(0, *reader()))
    wrong = []
    for epoch, taken in [(0, 3), (0, len(passes[0])), (0, None), (1, 3), (1, None)]:
        dataset, loader = reader()
        for number in range(epoch + 1):
            dataset.set_epoch(number)
            list(itertools.islice(iter(loader), taken if number == epoch else None))
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        dataset, loader = reader()
        loader.load_state_dict(state)
        expected = ([] if taken is None else [passes[epoch][taken:]]) + passes[epoch + 1 :]
        got = list(passes_from(epoch + (taken is None), dataset, loader))
        if got != expected:
            wrong.append((epoch, taken, [one[:1] for one in got], [one[:1] for one in expected]))
    equal(f"by number, {workers} workers: goes on from everywhere in the epochs that are set", wrong, [])


def main():
    plan = Plan.create(options()["reference"], global_batch=24, seed=3)
    # 7 does not divide what a worker reads, and its last batch is short; None is one sample after the other.
    kinds = [*itertools.product(("batched", None, 7), (0, 2, 3)), (7, 1)]
    for batch_size, workers in kinds:
        straight = Reader(plan, batch_size, workers)
        passes = [straight.take() for _ in range(3)]
        length = len(passes[0])
        places = [(0, length), (0, None), (1, length // 2)]
        for persistent in (False, True) if (batch_size, workers) == (7, 2) else (False,):
            wrong = []
            for epoch, taken in places:
                state = Reader(plan, batch_size, workers, persistent).take_until(epoch, taken)
                again = Reader(plan, batch_size, workers, persistent)
                again.loader.load_state_dict(state)
                # Behind its last batch a pass has yet to end, and then nothing comes of it.
                expected = ([] if taken is None else [passes[epoch][taken:]]) + passes[epoch + 1 :]
                got = [again.take() for _ in expected]
                if got != expected:
                    wrong.append((epoch, taken, [one[:1] for one in got], [one[:1] for one in expected]))
            what = "batches of its own" if batch_size == "batched" else f"batches of {batch_size}"
            kept = ", persistent" if persistent else ""
            equal(f"{what}, {workers} workers{kept}: from within an epoch, its last batch and behind it", wrong, [])

    for workers in (0, 2):
        by_number(plan, workers)

    dataset = BobbinDataset(plan, decode=name, rank=0, world=1)
    epochs = [list(dataset) for _ in range(2)]
    dataset.set_epoch(0)
    list(dataset)
    again = BobbinDataset(plan, decode=name, rank=0, world=1)
    again.load_state_dict(dataset.state_dict())
    equal("without a loader, a state behind an epoch is that of the next one", list(again), epochs[1])


if __name__ == "__main__":
    main()
