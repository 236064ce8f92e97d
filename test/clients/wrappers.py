"""Wrappers that divide a dataset among ranks, as ours does: two ranks of each, and accelerate on one rank."""

import os
import subprocess
import sys

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from bobbin_loader import BobbinDataset, Plan
from checks import check, equal, options, refused
from torch.utils.data import DataLoader

given = options()


def number(sample):
    return torch.tensor(sample.position)


def alone(plan):
    """One rank, where accelerate divides nothing."""
    steps = [(0, b.step, [s.position for s in b.samples]) for b in plan.batches()]

    def prepared(**settings):
        dataset = BobbinDataset(plan, batched=True, decode=number, collate=torch.stack)
        loader = DataLoader(dataset, batch_size=None)
        return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings)).prepare(loader)

    with refused("accelerate: batches that its dispatcher would take apart", "INVALID_ARGUMENT", "batched=False"):
        list(prepared())
    loader = prepared(dispatch_batches=False)
    got = [(b.epoch, b.step, b.samples.tolist()) for b in loader]
    equal("accelerate gives batches as they are", got, steps)
    equal("and those of the next epoch", [b.epoch for b in loader], [1] * len(steps))


def on_two_ranks():
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-B", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, os.path.join(here, "wrapped_rank.py"), sys.argv[1]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    check("both ranks came to their end", done.returncode == 0, done.stderr[-4000:])


if __name__ == "__main__":
    alone(Plan.create(given["reference"], global_batch=24, seed=6))
    on_two_ranks()
