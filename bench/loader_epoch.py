"""One contender of the bench of the loader: epochs over the same images, each as its own users read them.

loader_epoch.py '{"contender": ..., "workers": ..., "epochs": ..., ...}' prints the seconds of each timed epoch, and how
many samples and bytes it gave. Starting, imports and the first epoch are not timed.
"""

import json
import os
import random
import sys
import time

given = json.loads(sys.argv[1])
BATCH = 64


def as_it_is(value):
    return value


def content(sample):
    return sample["jpg"]


def raw(workers):
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    class Files(Dataset):
        def __init__(self, folder):
            self.paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, i):
            with open(self.paths[i], "rb") as file:
                return file.read()

    files = Files(given["files"])
    loader = DataLoader(
        files,
        batch_size=BATCH,
        sampler=RandomSampler(files),
        num_workers=workers,
        collate_fn=as_it_is,
        persistent_workers=workers > 0,
    )
    return lambda: iter(loader)


def bobbin(transport, workers):
    from bobbin_loader import BobbinDataset, Plan
    from torch.utils.data import DataLoader

    plan = Plan.create(given["reference"], global_batch=BATCH, tail="uneven", meta=None)
    dataset = BobbinDataset(plan, batched=True, decode=content, transport=transport)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, collate_fn=as_it_is, persistent_workers=workers > 0
    )
    return lambda: (batch.samples for batch in loader)


def webdataset(urls, workers):
    import webdataset
    from torch.utils.data import DataLoader

    data = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None, empty_check=False)
    loader = DataLoader(
        data.batched(BATCH, collation_fn=as_it_is),
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        persistent_workers=workers > 0,
    )
    return lambda: ([sample["jpg"] for sample in batch] for batch in loader)


def mosaic(workers):
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(local=given["mosaic"], batch_size=BATCH, shuffle=True)
    loader = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=as_it_is, persistent_workers=workers > 0
    )
    return lambda: ([sample["jpg"] for sample in batch] for batch in loader)


def as_bytes(views):
    """litData gives views of its chunks, which do not pass between processes."""
    return [bytes(view) for view in views]


def litdata(workers):
    import litdata

    dataset = litdata.StreamingDataset(given["litdata"], shuffle=True)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=as_bytes, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def of_list(item):
    with open(item, "rb") as file:
        return file.read()


def prepare():
    """The same files in the formats of the others."""
    import litdata
    from streaming import MDSWriter

    paths = [os.path.join(given["files"], name) for name in sorted(os.listdir(given["files"]))]
    with MDSWriter(out=given["mosaic"], columns={"jpg": "bytes"}) as out:
        for path in paths:
            out.write({"jpg": of_list(path)})
    litdata.optimize(of_list, paths, given["litdata"], chunk_bytes="64MB", num_workers=2)


def latency():
    """Milliseconds of one step's whole answer, asked for over a connection that is there, of steps in a row."""
    from bobbin_loader.connection import Connection
    from bobbin_loader.plan import Plan

    plan = Plan.create(given["reference"], global_batch=BATCH, tail="drop", meta=None)
    connection = Connection(plan.address)
    accepts = {"paths": "application/vnd.bobbin.paths+ndjson", "tar": "application/x-tar"}
    taken = {kind: [] for kind in accepts}
    first = {kind: [] for kind in accepts}
    for kind, accept in accepts.items():
        session = "bench%s000" % kind
        for epoch in range(given["epochs"]):
            for step in range(given["steps"]):
                start = time.perf_counter()
                query = f"epoch={epoch}&step={step}" + (f"&session={session}" if kind == "paths" else "")
                connection.send("GET", f"/v1/plans/{plan.plan_id}/batches?{query}", accept=accept)
                body = connection.receive().read()
                (first if step == 0 else taken)[kind].append((time.perf_counter() - start) * 1000)
                if kind == "paths":
                    lease = json.loads(body.split(b"\n", 1)[0])["lease"]
                    connection.json("POST", "/v1/release", {"lease": lease})
    return {"taken": taken, "first": first}


def per_object():
    """Seconds for the same objects: each by a GET of its own on one connection, and as batches."""
    from bobbin_loader.connection import Connection
    from bobbin_loader.plan import Plan

    plan = Plan.create(given["reference"], global_batch=BATCH, tail="uneven", meta=None)
    keys = [sample.logical_keys["jpg"] for batch in plan.batches() for sample in batch.samples]
    connection = Connection(plan.address)
    start = time.perf_counter()
    for key in keys:
        connection.send("GET", f"/v1/p/{plan.top_hash}/{key}")
        connection.receive().read()
    alone = time.perf_counter() - start
    taken = {}
    for transport in ("paths", "tar"):
        start = time.perf_counter()
        for _ in plan.batches(epoch=1, transport=transport, verify=False):
            pass
        taken[transport] = time.perf_counter() - start
    return {"alone": alone, **taken}


def cold():
    """Seconds of the first epoch of a plan."""
    from bobbin_loader import Plan

    start = time.perf_counter()
    plan = Plan.create(given["reference"], global_batch=BATCH, tail="uneven", meta=None)
    made = time.perf_counter()
    got = 0
    for batch in plan.batches(transport=given["transport"]):
        got += sum(len(sample["jpg"]) for sample in batch.samples)
    return {"plan": made - start, "epoch": time.perf_counter() - made, "bytes": got}


def epochs():
    contender, workers = given["contender"], given["workers"]
    makers = {
        "raw": lambda: raw(workers),
        "paths": lambda: bobbin("paths", workers),
        "tar": lambda: bobbin("tar", workers),
        "webdataset": lambda: webdataset(given["urls"], workers),
        "mosaic": lambda: mosaic(workers),
        "litdata": lambda: litdata(workers),
    }
    batches = makers[contender]()
    seconds = []
    for _ in range(given["epochs"] + 1):
        samples = total = 0
        start = time.perf_counter()
        for batch in batches():
            samples += len(batch)
            total += sum(len(image) for image in batch)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "samples": samples, "bytes": total}


if __name__ == "__main__":
    random.seed(0)
    work = {"prepare": prepare, "latency": latency, "per_object": per_object, "cold": cold, "epochs": epochs}
    print(json.dumps(work[given.get("work", "epochs")]()))
