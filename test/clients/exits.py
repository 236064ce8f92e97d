"""Programs that end with a stream open: they say nothing, and their leases are let go at once."""

import json
import os
import subprocess
import sys
import time

from bobbin_loader import Plan
from checks import check, equal, options

given = options()
plan = Plan.create(given["reference"], global_batch=4, seed=1)

START = """
import json, os, sys
given = json.loads(sys.argv[1])
if given["torch"]:
    import torch
from bobbin_loader import BobbinDataset, BobbinMapDataset, Plan
plan = Plan.create(given["reference"], global_batch=4, seed=1)
dataset = BobbinDataset(plan, batched=True, transport=given["transport"], rank=0, world=1)
"""
ENDS = {
    "in the middle of a stream": "kept = plan.batches(transport=given['transport']); next(kept)",
    "in the middle of a dataset": "kept = iter(dataset); next(kept)",
    "in a loop": "for batch in dataset: break",
    "with samples by number": "kept = BobbinMapDataset(plan, transport=given['transport'], rank=0, world=1); kept[3]",
    "by sys.exit": "kept = iter(dataset); next(kept); sys.exit(0)",
    "in a thread": "import threading; kept = iter(dataset)\nt = threading.Thread(target=next, args=(kept,)); t.start()",
    "after a fork": "kept = iter(dataset); next(kept)\nif os.fork() == 0: next(kept); del kept; sys.exit(0)\nos.wait()",
    "with an error of its own": "kept = iter(dataset); next(kept)\ntry: 1 / 0\nexcept ZeroDivisionError as e: error = e",
}
if given["torch"]:
    # It takes a second to import, and a time of its own to end.
    ENDS = {name: ENDS[name] for name in ("in the middle of a dataset", "with samples by number")}
    ENDS["with workers"] = (
        "from torch.utils.data import DataLoader\n"
        "kept = iter(DataLoader(dataset, batch_size=None, num_workers=2)); next(kept)"
    )


def leases():
    return plan.ask("GET", "/v1/status")["pathLeases"]


def main():
    for transport in ("paths",) if given["torch"] else ("paths", "tar"):
        for name, end in ENDS.items():
            facts = json.dumps({**given, "transport": transport})
            before = leases()
            done = subprocess.run(
                [sys.executable, "-B", "-c", f"{START}\n{end}\n", facts], capture_output=True, text=True, timeout=120
            )
            said = (done.returncode, done.stdout, done.stderr)
            equal(f"{transport}: a program that ends {name} says nothing", said, (0, "", ""))
            if name == "with samples by number":
                # The others have asked for more, which the sidecar may still be preparing.
                check(f"{transport}: nor does it leave a lease", leases() <= before, leases())

    # A sidecar that does not answer cannot keep a program from its end.
    stuck = "import signal; kept = iter(dataset); next(kept); os.kill(given['sidecar'], signal.SIGSTOP)"
    if "sidecar" in given:
        facts = json.dumps({**given, "transport": "paths"})
        since = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-B", "-c", f"{START}\n{stuck}\n", facts], capture_output=True, text=True, timeout=120
            )
        finally:
            os.kill(given["sidecar"], 18)
        equal("a stuck sidecar: nothing is said", (done.returncode, done.stderr), (0, ""))
        check("and the program ends long before its requests would", time.monotonic() - since < 60)


if __name__ == "__main__":
    main()
