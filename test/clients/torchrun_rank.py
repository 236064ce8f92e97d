"""One rank under torchrun: its node's sidecar gives its part of each global batch; rank 0 writes down all of them."""

import json
import sys

import torch.distributed as distributed
from bobbin_loader import BobbinDataset, Plan
from torch.utils.data import DataLoader


def name(sample):
    return [sample.position, sample.is_pad, sample.logical_keys["jpg"]]


def main():
    given = json.loads(sys.argv[1])
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    sidecars = given["sidecars"]
    plan = Plan.create(given["reference"], global_batch=24, seed=6, sidecar=sidecars[rank * len(sidecars) // world])
    dataset = BobbinDataset(plan, batched=True, decode=name)
    if given["cursor"]:
        dataset.load_state_dict({"cursor": given["cursor"]})
    steps, cursor, epochs = [], "", 0
    loader = DataLoader(dataset, batch_size=None, num_workers=given["workers"])
    while epochs < given["epochs"] and len(steps) < given["steps"]:
        epochs += 1
        for batch in loader:
            parts = [None] * world
            distributed.all_gather_object(parts, (batch.step, batch.cursor, batch.samples))
            assert len({(step, at) for step, at, _ in parts}) == 1, parts
            steps.append([batch.epoch, batch.step, sum((part for _, _, part in parts), [])])
            cursor = batch.cursor
            if len(steps) == given["steps"]:
                break
    if rank == 0:
        with open(given["out"], "w") as file:
            json.dump({"plan": plan.plan_id, "cursor": cursor, "steps": steps}, file)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
