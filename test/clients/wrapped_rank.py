"""One of two ranks: what accelerate, HF Trainer, Lightning and others make of our datasets, by each of their settings.

Each case reads an epoch on both ranks. Either every sample came once, or both ranks say who divides twice.
"""

import os
import tempfile

import torch
import torch.distributed as distributed
from bobbin_loader import BobbinDataset, BobbinError, BobbinMapDataset, Plan
from checks import check, equal, options
from torch.utils.data import DataLoader, DistributedSampler

given = options()
plan = Plan.create(given["reference"], global_batch=24, seed=6)
WHOLE = {"rank": 0, "world": 1}


def number(sample):
    """The sample's number in the package, and whether it is there to fill the last batch."""
    return torch.tensor([int(sample.logical_keys["jpg"][6:12]), int(sample.is_pad)])


def of_all(value):
    parts = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, value)
    return parts


def outcomes(read):
    """What each rank got: its samples, or the words of its error."""
    try:
        batches = [batch.tolist() for batch in read()]
        return of_all([tuple(sample) for batch in batches for sample in batch])
    except BobbinError as error:
        return of_all(str(error))


def comes_once(name, read):
    got = outcomes(read)
    if distributed.get_rank() == 0:
        if any(isinstance(part, str) for part in got):
            return check(name, False, got)
        samples = sorted(sample for part in got for sample, pad in part if not pad)
        equal(f"{name}: every sample once", samples, list(range(given["samples"])))


def is_refused(name, read, *words):
    got = outcomes(read)
    if distributed.get_rank() == 0:
        told = all(isinstance(part, str) and all(word in part for word in words) for part in got)
        check(f"{name}: refused on both ranks", told, got)


def iterable(workers=0, **more):
    return DataLoader(BobbinDataset(plan, decode=number, **more), batch_size=12, num_workers=workers)


def batched(**more):
    dataset = BobbinDataset(plan, decode=number, batched=True, collate=torch.stack, **more)
    return DataLoader(dataset, batch_size=None)


def by_number(sampler=None, **more):
    dataset = BobbinMapDataset(plan, decode=number, **more)
    return DataLoader(dataset, batch_size=12, sampler=sampler and sampler(dataset))


def with_accelerate():
    from accelerate import Accelerator, DataLoaderConfiguration

    def prepared(loader, **settings):
        return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings)).prepare(loader)

    twice = ("divides this dataset into 2 parts", "rank=0, world=1", "prepare")
    comes_once("accelerate, left out of prepare", lambda: iterable())
    comes_once("accelerate, batches left out of prepare", lambda: (batch.samples for batch in batched()))
    for settings in ({}, {"dispatch_batches": False}, {"split_batches": True}):
        for workers in (0, 1):
            name = f"accelerate with {settings}, {workers} workers"
            is_refused(name, lambda s=settings, w=workers: prepared(iterable(w), **s), *twice)
            comes_once(f"{name}, whole", lambda s=settings, w=workers: prepared(iterable(w, **WHOLE), **s))
    for settings in ({}, {"dispatch_batches": False}):
        for kind, more in (("a part", {}), ("whole", WHOLE)):
            is_refused(
                f"accelerate with {settings}, batches of {kind}",
                lambda s=settings, m=more: (batch.samples for batch in prepared(batched(**m), **s)),
                "batched=False",
            )
    # From epoch 1, step 5 on, to the end of epoch 2. Its loader counts from 0, and sets that epoch.
    expected = [[number(s).tolist() for s in b.samples] for e in (1, 2) for b in plan.batches(epoch=e)][5:]
    for told in (False, True):
        loader = prepared(iterable(**WHOLE))
        loader.dataset.load_state_dict({"cursor": plan.cursor(1, 5)})
        if told:
            loader.set_epoch(1)
            steps = [of_all(batch.tolist()) for _ in range(2) for batch in loader]
            if distributed.get_rank() == 0:
                equal("accelerate goes on behind a cursor", [a + b for a, b in steps], expected)
        else:
            is_refused("accelerate that would lose a cursor", lambda: loader, "go on in epoch 1", "set_epoch(1)")
    is_refused("accelerate, by number", lambda: prepared(by_number()), "BatchSamplerShard", *twice)
    comes_once("accelerate, by number, whole", lambda: prepared(by_number(**WHOLE)))


def with_trainer():
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        """Keeps what it is trained on."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = []

        def forward(self, inputs):
            self.seen.append(inputs.clone())
            return {"loss": self.weight.sum() * 0}

    class OwnLoader(Trainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=12, collate_fn=stacked)

    def stacked(samples):
        return {"inputs": torch.stack(samples)}

    def trained(kind, **more):
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out,
                per_device_train_batch_size=12,
                max_steps=plan.steps_per_epoch,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            model = Model()
            dataset = BobbinDataset(plan, decode=number, **more)
            kind(model=model, args=arguments, train_dataset=dataset, data_collator=stacked).train()
            return model.seen

    is_refused("HF Trainer", lambda: trained(Trainer), "divides this dataset into 2 parts", "get_train_dataloader")
    comes_once("HF Trainer, with its own loader", lambda: trained(OwnLoader))
    comes_once("HF Trainer, whole", lambda: trained(Trainer, **WHOLE))


def with_lightning():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, make):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.make, self.seen = make, []

        def train_dataloader(self):
            return self.make()

        def training_step(self, batch, _):
            self.seen.append(batch if isinstance(batch, torch.Tensor) else batch.samples)
            return self.weight.sum() * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trained(make, **settings):
        module = Module(make)
        quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar")}
        lightning.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=1,
            enable_model_summary=False,
            **quiet,
            **settings,
        ).fit(module)
        return module.seen

    comes_once("Lightning", lambda: trained(iterable))
    comes_once("Lightning, batches", lambda: trained(batched))
    is_refused("Lightning, by number", lambda: trained(by_number), "2 parts", "use_distributed_sampler=False")
    comes_once("Lightning, by number, without its sampler", lambda: trained(by_number, use_distributed_sampler=False))
    comes_once("Lightning, by number, whole", lambda: trained(lambda: by_number(**WHOLE)))


def with_datasets():
    from datasets import IterableDataset
    from datasets.distributed import split_dataset_by_node

    def rows(**more):
        def generate():
            for position, pad in BobbinDataset(plan, decode=lambda sample: number(sample).tolist(), **more):
                yield {"row": [position, pad]}

        return IterableDataset.from_generator(generate)

    def split(**more):
        rank, world = distributed.get_rank(), distributed.get_world_size()
        return (torch.tensor([row["row"]]) for row in split_dataset_by_node(rows(**more), rank, world))

    is_refused("split_dataset_by_node", split, "divides this dataset into 2 parts", "split_dataset_by_node out")
    comes_once("split_dataset_by_node, whole", lambda: split(**WHOLE))
    comes_once("HF datasets without it", lambda: (torch.tensor([row["row"]]) for row in rows()))
    told = "nothing"
    try:
        list(DataLoader(rows().with_format("torch"), num_workers=2))
    except Exception as error:
        told = str(error)
    told = of_all(told)
    if distributed.get_rank() == 0:
        check("HF datasets divide among workers: refused", all("2 workers" in one for one in told), told)


def with_samplers():
    from torchdata.stateful_dataloader import StatefulDataLoader
    from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

    def stateful(**more):
        dataset = BobbinMapDataset(plan, decode=number, **more)
        sampler = StatefulDistributedSampler(dataset, shuffle=False)
        return StatefulDataLoader(dataset, batch_size=12, sampler=sampler)

    comes_once("torch, by number", lambda: by_number())
    is_refused("DistributedSampler", lambda: by_number(DistributedSampler), "DistributedSampler divides", "2 parts")
    comes_once("DistributedSampler, whole", lambda: by_number(DistributedSampler, **WHOLE))
    is_refused("StatefulDistributedSampler", stateful, "StatefulDistributedSampler divides", "2 parts")
    comes_once("StatefulDistributedSampler, whole", lambda: stateful(**WHOLE))


def with_data_pipes():
    from torch.utils.data.datapipes.iter import IterableWrapper

    def piped(**more):
        pipe = IterableWrapper(BobbinDataset(plan, decode=number, **more), deepcopy=False).sharding_filter()
        return DataLoader(pipe, batch_size=12)

    is_refused("sharding_filter", piped, "ShardingFilterIterDataPipe divides", "2 parts")
    comes_once("sharding_filter, whole", lambda: piped(**WHOLE))


CASES = {
    "accelerate": with_accelerate,
    "Trainer": with_trainer,
    "Lightning": with_lightning,
    "datasets": with_datasets,
    "samplers": with_samplers,
    "data pipes": with_data_pipes,
}


def main():
    # As a script does that makes its datasets first, and is told its rank by init_process_group.
    environ = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    early = [loader() for loader in (iterable, by_number)]
    os.environ["WORLD_SIZE"] = environ["WORLD_SIZE"]
    unknown = refusal_of(iterable)
    os.environ.update(environ)
    distributed.init_process_group("gloo")
    for loader, kind in zip(early, ("iterable", "by number")):
        is_refused(f"made before init_process_group, {kind}", lambda it=loader: it, "made for rank 0 of 1")
    told = of_all(unknown)
    if distributed.get_rank() == 0:
        check("a world without a rank is refused", all("RANK is not set" in one for one in told), told)
    for name in given["cases"]:
        CASES[name]()
    distributed.destroy_process_group()


def refusal_of(make):
    try:
        make()
    except BobbinError as error:
        return str(error)
    return "nothing was raised"


if __name__ == "__main__":
    main()
