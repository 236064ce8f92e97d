"""Trains a small network on the faces, reading them from the mount, as tar or by paths, on some number of ranks.

Weights are compared bit by bit, so the sum over a global batch has to be the same sum whatever the world: each rank
computes the gradient of each of its samples, all of them are gathered in the order of positions, and added up then.
"""

import hashlib
import io
import os
import sys

import numpy
import torch
import torch.distributed as distributed
import torch.multiprocessing
from bobbin_loader import BobbinDataset, Plan
from checks import check, equal, options
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../support"))
import qperm  # noqa: E402

GLOBAL_BATCH, EPOCHS, SEED = 24, 8, "faces"


def decode(sample):
    meta = next(iter(sample.meta.values()))
    return pixels(next(iter(sample.values()))), float(meta["annotations"][0]["category"] == "face"), sample.is_pad


def pixels(png):
    return torch.from_numpy(numpy.asarray(Image.open(io.BytesIO(png)), dtype=numpy.float32) / 64.0 - 2.0)[None]


def mounted_batches(plan, mount, keys, epoch, rank, world):
    """What an epoch is, worked out without the sidecar: files of the mount in the order of qperm-1."""
    order = qperm.Permutation(plan.samples, plan.top_hash, SEED, epoch)
    each = GLOBAL_BATCH // world
    for step in range(plan.steps_per_epoch):
        batch = []
        for position in range(step * GLOBAL_BATCH + rank * each, step * GLOBAL_BATCH + (rank + 1) * each):
            key = sorted(keys)[order.at(position % plan.samples)]
            with open(os.path.join(mount, key), "rb") as file:
                face = keys[key]["annotations"][0]["category"] == "face"
                batch.append((pixels(file.read()), float(face), position >= plan.samples))
        yield step, plan.cursor(epoch, step + 1), batch


def loader_batches(dataset):
    for batch in DataLoader(dataset, batch_size=None):
        yield batch.step, batch.cursor, batch.samples


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 5, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 5 * 5, 1),
    )


def step_of(model, optimizer, batch, world):
    """One step on the global batch; those that the tail repeats have no weight."""
    parameters = list(model.parameters())
    gradients = []
    for image, label, is_pad in batch:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(image[None])[0, 0], torch.tensor(label))
        grads = torch.autograd.grad(loss, parameters)
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        gradients.append(torch.cat([flat * (not is_pad), torch.tensor([float(not is_pad)])]))
    mine = torch.stack(gradients)
    every = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(every, mine)
    total = torch.cat(every).sum(dim=0)
    mean, at = total[:-1] / total[-1], 0
    for parameter in parameters:
        parameter.grad = mean[at : at + parameter.numel()].reshape(parameter.shape).clone()
        at += parameter.numel()
    optimizer.step()


def rank_main(rank, world, given, job):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    distributed.init_process_group("gloo", init_method=f"file://{job['rendezvous']}", rank=rank, world_size=world)
    plan = Plan.create(given["reference"], global_batch=GLOBAL_BATCH, seed=SEED, meta="json")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = 0
    dataset = (
        BobbinDataset(plan, batched=True, decode=decode, transport=job["source"]) if job["source"] != "mount" else None
    )
    if job["resume"]:
        state = torch.load(job["resume"], weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        dataset.load_state_dict({"cursor": state["cursor"]})
        first = plan.place(state["cursor"])[0]
    steps = 0
    for epoch in range(first, EPOCHS):
        if dataset is None:
            batches = mounted_batches(plan, given["mount"], given["keys"], epoch, rank, world)
        else:
            batches = loader_batches(dataset)
        for _, cursor, batch in batches:
            step_of(model, optimizer, batch, world)
            steps += 1
            if steps == job["stop"]:
                break
        if steps == job["stop"]:
            break
    if rank == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "cursor": cursor}
        torch.save(state, job["save"])
    distributed.destroy_process_group()


def train(given, name, world, source, stop=-1, resume=""):
    save = os.path.join(given["folder"], f"{name}.pt")
    job = {"source": source, "stop": stop, "resume": resume, "save": save, "rendezvous": save + ".rendezvous"}
    torch.multiprocessing.spawn(rank_main, args=(world, given, job), nprocs=world)
    return save


def weights(path):
    model = torch.load(path, weights_only=True)["model"]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.values())).hexdigest()


def accuracy(path, given):
    model = network()
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    plan = Plan.create(given["reference"], global_batch=GLOBAL_BATCH, tail="uneven")
    right = [
        float(model(image[None])[0, 0] > 0) == label
        for batch in plan.batches()
        for image, label, _ in (decode(sample) for sample in batch.samples)
    ]
    return sum(right) / len(right)


def main():
    given = options()
    by_mount = train(given, "mount", 1, "mount")
    expected = weights(by_mount)
    learned = accuracy(by_mount, given)
    check(f"it learns to tell faces ({learned:.3f} of them are right)", learned > 0.9, learned)
    equal("trained from tar: equal weights", weights(train(given, "tar", 1, "tar")), expected)
    equal("trained by paths, on three ranks: equal weights", weights(train(given, "paths", 3, "paths")), expected)
    half = train(given, "half", 2, "paths", stop=31)
    check("half of it is not all of it", weights(half) != expected)
    equal(
        "cut, and resumed on another world as tar: equal weights",
        weights(train(given, "rest", 3, "tar", resume=half)),
        expected,
    )


if __name__ == "__main__":
    main()
