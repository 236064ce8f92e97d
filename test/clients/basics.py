"""Samples over both transports, plans, cursors and refusals, with nothing but the standard library."""

import logging
import os
import pickle
import tempfile

from bobbin_loader import BobbinDataset, BobbinError, BobbinMapDataset, Cursor, Plan
from bobbin_loader.connection import Refused
from bobbin_loader.patience import Patience
from checks import check, equal, options, refused

given = options()
source = given["source"]
reference = given["reference"]


def of_source(key):
    with open(os.path.join(source, key), "rb") as file:
        return file.read()


def plain(batches):
    return [
        (b.epoch, b.step, b.cursor, [(s.position, s.is_pad, dict(s), s.logical_keys, s.meta) for s in b.samples])
        for b in batches
    ]


plan = Plan.create(reference, global_batch=24, seed=7)
equal("the plan has the samples", plan.samples, given["samples"])
equal("and a step for every 24 of them", plan.steps_per_epoch, -(-given["samples"] // 24))
check("its id does not depend on the client", plan.plan_id == Plan.create(reference, global_batch=24, seed="7").plan_id)
check("another seed is another plan", plan.plan_id != Plan.create(reference, global_batch=24, seed=8).plan_id)

by_paths = plain(plan.batches(transport="paths"))
by_tar = plain(plan.batches(transport="tar"))
equal("a batch says what it is", repr(next(plan.batches(epoch=2, step=1))), "<Batch of epoch 2, step 1: 24 samples>")
equal("paths and tar give the same batches", by_paths, by_tar)
equal("hashed paths, too", plain(plan.batches(transport="paths", verify=True)), by_paths)
samples = [sample for _, _, _, samples in by_paths for sample in samples]
real = [sample for sample in samples if not sample[1]]
equal("each sample comes once", sorted(keys["jpg"] for _, _, _, keys, _ in real), sorted(given["keys"]))
equal("and the tail is padded to whole steps", len(samples), plan.steps_per_epoch * 24)
check(
    "bytes are those of the source",
    all(files[suffix] == of_source(key) for _, _, files, keys, _ in samples for suffix, key in keys.items()),
)
check(
    "with the metadata of each entry",
    all(meta["jpg"]["name"] == keys["jpg"] and meta["cls"] is None for _, _, _, keys, meta in samples),
)
check("the order is not that of the package", [k["jpg"] for _, _, _, k, _ in real] != sorted(given["keys"]))
here = os.getcwd()
os.chdir(source)
relative = "../.." + reference[len(given["registry"]) :]
equal("a relative path is taken from here", Plan.create(relative, global_batch=24, seed=7).plan_id, plan.plan_id)
os.chdir(here)
other_epoch = plain(plan.batches(epoch=1))
check("nor that of the next epoch", [s[3] for b in other_epoch for s in b[3]] != [s[3] for b in by_paths for s in b[3]])

ranks = [plain(plan.batches(rank=rank, world=3)) for rank in range(3)]
joined = [sum((rank[step][3] for rank in ranks), []) for step in range(plan.steps_per_epoch)]
equal("the ranks' parts are the global batch", joined, [batch[3] for batch in by_paths])
leases = plan.ask("GET", "/v1/status")["pathLeases"]
equal("any sample by its position", [s.position for s in plan.samples_at([5, 3, 99])], [5, 3, 99])
check("of which no lease is left", plan.ask("GET", "/v1/status")["pathLeases"] <= leases)
equal("the same over tar", [dict(s) for s in plan.samples_at([5, 3], transport="tar")], [samples[5][2], samples[3][2]])

half = by_paths[3][2]
equal("a cursor goes on behind its batch", plain(plan.batches(cursor=half)), by_paths[4:])
facts = plan.ask("POST", "/v1/cursor/check", {"plan": plan.plan_id, "cursor": half})
equal("the sidecar reads our cursors", (facts["epoch"], facts["step"]), (0, 4))
equal("behind the last step is the next epoch", plan.place(by_paths[-1][2]), (1, 0))
equal("a cursor has at most 256 bytes", len(str(Cursor(plan.top_hash, plan.plan_id, 2**32 - 1, 2**53))) <= 256, True)

dataset = BobbinDataset(plan, decode=lambda s: s.meta["jpg"]["label"])
equal("a dataset gives what decode makes of the samples", list(dataset), [s[4]["jpg"]["label"] for s in samples])
equal(
    "the next pass is over the next epoch",
    [s for s in dataset],
    [s[4]["jpg"]["label"] for b in other_epoch for s in b[3]],
)
dataset.set_epoch(0)
batched = BobbinDataset(plan, batched=True, collate=len, rank=1, world=2)
equal("whole batches, collated", [b.samples for b in batched], [12] * plan.steps_per_epoch)
iterator = iter(dataset)
taken = [next(iterator) for _ in range(31)]
state = pickle.loads(pickle.dumps(dataset.state_dict()))
fresh = BobbinDataset(plan, decode=lambda s: s.meta["jpg"]["label"])
fresh.load_state_dict(state)
equal("a state goes on in the middle of a batch", taken + list(fresh), [s[4]["jpg"]["label"] for s in samples])
numbered = BobbinMapDataset(plan)
equal("by number", [dict(numbered[i]) for i in (0, 30, -1)], [samples[i][2] for i in (0, 30, -1)])
numbered.load_state_dict({"cursor": half})
equal("from a cursor on", (len(numbered), dict(numbered[0])), (len(samples) - 96, samples[96][2]))

some = Plan.create(
    reference, select="train/*.jpg", where="meta.label == `3`", group="entry", global_batch=4, tail="uneven"
)
equal("a plan of some entries", some.samples, sum(1 for i in range(given["samples"]) if i % 10 == 3))
equal("an uneven tail repeats nothing", sum(len(b.samples) for b in some.batches()), some.samples)
pickled = pickle.loads(pickle.dumps(plan))
equal("plans pickle", next(pickled.batches()).cursor, by_paths[0][2])

with refused("a cursor of another plan", "CURSOR_FOREIGN", "this is plan"):
    some.batches(cursor=half)
with refused("the sidecar refuses it, too", "CURSOR_FOREIGN"):
    some.ask("GET", f"/v1/plans/{some.plan_id}/batches?cursor={half}")
with refused("a damaged cursor", "INVALID_ARGUMENT", "not a cursor"):
    plan.batches(cursor=half[:-3] + "AAA")
with refused("a world that does not divide the batch", "INVALID_ARGUMENT", "5 ranks do not divide"):
    next(plan.batches(rank=0, world=5))
with refused("a rank that is none", "INVALID_ARGUMENT", "rank 2 of 2"):
    next(plan.batches(rank=2, world=2))
with refused("a package that is not there", "PACKAGE_NOT_FOUND"):
    Plan.create(given["registry"] + "/test/nothing")
with refused("another top hash than the package's", "INVALID_ARGUMENT"):
    Plan.create(reference, top_hash="0" * 64)
with refused("a selection of nothing", "INVALID_ARGUMENT", "*.mp3"):
    Plan.create(reference, select="*.mp3")
with refused("a JMESPath that is none", "INVALID_ARGUMENT", "where"):
    Plan.create(reference, where="meta.[")
with refused("nobody there", "SIDECAR_UNREACHABLE", "bobbin loader", "BOBBIN_SIDECAR"):
    Plan.create(reference, sidecar="unix:/nowhere/loader.sock", patience=0.3)
with refused("an address that is none", "INVALID_ARGUMENT", "unix:/path"):
    Plan.create(reference, sidecar="ftp://here")


class Levels(logging.Handler):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.text = ""

    def emit(self, record):
        self.text = record.getMessage()
        self.seen.append((record.levelname, "BUSY" in self.text))


levels = Levels()
log = logging.getLogger("bobbin_loader")
log.setLevel(logging.INFO)
log.addHandler(levels)
busy = Patience(plan.address, 9)
for _ in range(3):
    busy.wait(Refused("BUSY", "too many answers under way", 429, 0.0))
    busy.progress()
equal("of a busy sidecar the log warns, once", levels.seen, [("WARNING", True), ("INFO", True), ("INFO", True)])
with refused("nobody there, as the log has it", "SIDECAR_UNREACHABLE"):
    Plan.create(reference, sidecar="unix:/nowhere/loader.sock", patience=0.1)
log.removeHandler(levels)
equal(
    "it names the address once, and asks whether somebody listens",
    levels.text,
    "unix:/nowhere/loader.sock: [Errno 2] No such file or directory; asking again for up to 0.1 s "
    "(is `bobbin loader` running there?)",
)
# Without an address: where `bobbin loader` listens when nobody says where, which is a matter of the environment.
sidecar = os.environ.pop("BOBBIN_SIDECAR")
for name in ("BOBBIN_CACHE", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
with tempfile.TemporaryDirectory() as home:
    os.environ["HOME"] = home
    with refused("no socket of a sidecar", "SIDECAR_UNREACHABLE", f"{home}/.cache/bobbin/loader/loader.sock", "/run/"):
        Plan.create(reference, patience=0.1)
    for name, value, cache in (
        ("HOME", home, ".cache/bobbin"),
        ("XDG_CACHE_HOME", f"{home}/xdg", "xdg/bobbin"),
        ("CACHE_DIRECTORY", f"{home}/unit:{home}/other", "unit"),
        ("BOBBIN_CACHE", f"{home}/own", "own"),
    ):
        os.makedirs(f"{home}/{cache}/loader")
        os.symlink(sidecar[len("unix:") :], f"{home}/{cache}/loader/loader.sock")
        os.environ[name] = value
        found = Plan.create(reference, global_batch=24, seed=7)
        equal(f"found by {name}", str(found.address), f"unix:{home}/{cache}/loader/loader.sock")
os.environ["BOBBIN_SIDECAR"] = sidecar
os.environ["BOBBIN_OBJECTS"] = "/nowhere"
with refused("paths without the store", "INVALID_ARGUMENT", "BOBBIN_OBJECTS"):
    plan.batches(transport="paths")
equal("auto takes tar then", plain(plan.batches()), by_paths)
error = pickle.loads(pickle.dumps(BobbinError("NOT_READY", "later", 503)))
equal("errors pickle", (error.code, error.detail, error.status), ("NOT_READY", "later", 503))
