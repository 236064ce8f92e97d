"""A package with objects that cannot be had: loud, or marked in their places."""

from bobbin_loader import Plan
from checks import check, equal, options, refused

given = options()
reference, gone = given["reference"], given["gone"]

for transport in ("paths", "tar"):
    plan = Plan.create(reference, global_batch=10, seed=3)
    seen = 0
    with refused(f"{transport}: the first missing object ends the epoch, and is named", given["code"], "train/"):
        for batch in plan.batches(transport=transport, patience=3):
            seen += 1
    check(f"{transport}: so the epoch was never complete", seen < plan.steps_per_epoch, seen)

marked = Plan.create(reference, global_batch=10, seed=3, on_missing="mark")
for transport in ("paths", "tar"):
    samples = [s for b in marked.batches(transport=transport) for s in b.samples]
    equal(f"{transport}: marked, the count is kept", len(samples), marked.steps_per_epoch * 10)
    bad = {key for s in samples for suffix, key in s.logical_keys.items() if suffix in s.errors}
    equal(f"{transport}: those that are gone are marked", sorted(bad), sorted(gone))
    check(
        f"{transport}: with the reason, and without bytes",
        all(s.errors[x]["code"] == given["code"] and x not in s for s in samples for x in s.errors),
    )
    good = [s for s in samples if not s.errors]
    check(f"{transport}: all others are whole", all(set(s) == set(s.logical_keys) for s in good))
