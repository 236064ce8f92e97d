"""Reads epochs slowly, and tells each batch, so that somebody can kill what serves them in the middle."""

import time

from bobbin_loader import Plan
from checks import check, equal, options, say

given = options()
plan = Plan.create(given["reference"], global_batch=10, seed=5)
expected = None
for transport in given["transports"]:
    for epoch in range(given["epochs"]):
        seen = []
        for batch in plan.batches(epoch=epoch, transport=transport, patience=60):
            seen.extend(s.logical_keys["jpg"] for s in batch.samples if not s.is_pad)
            say(transport=transport, epoch=epoch, step=batch.step, steps=plan.steps_per_epoch)
            time.sleep(given["pause"])
        equal(f"{transport}, epoch {epoch}: every sample once", sorted(seen), sorted(given["keys"]))
check("the end", True)
