"""webdataset, unchanged, over http: and over curl on the unix socket."""

import json
import os

import webdataset
from bobbin_loader import Plan
from checks import check, equal, options
from torch.utils.data import DataLoader

given = options()


def read(urls, workers):
    data = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None)
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    return [(s["__key__"], s["jpg"], s["cls"], json.loads(s["json"]), "pad" in s) for s in loader]


def is_no_pad(sample):
    """What a function has to be that workers are sent which are no fork."""
    return "pad" not in sample


def keys_of(plan, world, method="fork"):
    """Of all ranks, as the recipe in docs/loader-recipes.md reads them."""
    keys = []
    for rank in range(world):
        urls = plan.shard_urls(epoch=0, rank=rank, world=world)
        data = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None).select(is_no_pad)
        loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=method)
        keys += [sample["__key__"] for sample in loader]
    return sorted(keys)


def main():
    plan = Plan.create(given["reference"], global_batch=12, seed=4)
    expected = [
        ("%08d" % s.position, s["jpg"], s["cls"], s.meta, s.is_pad)
        for b in plan.batches(epoch=0, transport="tar")
        for s in b.samples
    ]
    for kind, address in (("pipe:curl", os.environ["BOBBIN_SIDECAR"]), ("http", given["tcp"])):
        urls = Plan.create(given["reference"], global_batch=12, seed=4, sidecar=address).shard_urls(epoch=0)
        check(f"{kind}: a shard each, by name", len(urls) == plan.shards_per_epoch, urls)
        equal(f"{kind}: the samples of an epoch, in order", read(urls, 0), expected)
        keys = sorted(sample[0] for sample in read(urls, 2))
        equal(f"{kind}: with two workers, each once", keys, [sample[0] for sample in expected])
        braces = urls[0].replace("-000000.tar", "-{000000..%06d}.tar" % (len(urls) - 1))
        equal(f"{kind}: as a range in braces", len(read(braces, 0)), len(expected))
    every = ["%08d" % position for position in range(plan.samples)]
    check("the last step is filled", plan.samples % 12 > 0, plan)
    for world, method in ((1, "spawn"), (2, "fork")):
        equal(f"without what fills the last step, {world} ranks: each sample once", keys_of(plan, world, method), every)
    uneven = Plan.create(given["reference"], global_batch=12, seed=4, tail="uneven")
    equal("a plan that fills nothing: each sample once", keys_of(uneven, 2), every)
    cached = plan.shard_urls(epoch=0, rank=1, world=2)
    names = {url.rsplit("/", 1)[1] for url in cached + plan.shard_urls(epoch=0) + plan.shard_urls(epoch=1)}
    equal("no two shards share a name, which is all that caches keep", len(names), 3 * plan.shards_per_epoch)


if __name__ == "__main__":
    main()
