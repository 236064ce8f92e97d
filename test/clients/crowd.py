"""Many clients at once, each a process and a rank of one world: together they read every sample once."""

import multiprocessing

from bobbin_loader import Plan
from checks import check, equal, options

given = options()
world = given["clients"]


def read(plan, rank, results):
    try:
        transport = ("paths", "tar")[rank % 2]
        results.put(
            [
                s.logical_keys["jpg"]
                for b in plan.batches(rank=rank, world=world, transport=transport)
                for s in b.samples
                if not s.is_pad
            ]
        )
    except Exception as error:
        results.put(repr(error))


if __name__ == "__main__":
    plan = Plan.create(given["reference"], global_batch=world * 2, seed=1)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=read, args=(plan, rank, results)) for rank in range(world)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    check(f"{world} clients come to their ends", all(isinstance(a, list) for a in answers), answers)
    equal("and read every sample once", sorted(key for keys in answers for key in keys), sorted(given["keys"]))
