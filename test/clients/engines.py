"""torchrun and Ray on several sidecars: the same global batches, also when resumed on another world."""

import json
import os
import subprocess
import sys
import tempfile

from bobbin_loader import Plan
from checks import check, equal, options

given = options()
reference, sidecars = given["reference"], given["sidecars"]
here = os.path.dirname(os.path.abspath(__file__))


def expected_steps(plan):
    return [
        [epoch, b.step, [[s.position, s.is_pad, s.logical_keys["jpg"]] for s in b.samples]]
        for epoch in range(2)
        for b in plan.batches(epoch=epoch)
    ]


def torchrun(ranks, **more):
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        job = {"reference": reference, "sidecars": sidecars, "cursor": "", "workers": 1, "epochs": 2, "out": out.name}
        command = [sys.executable, "-B", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        done = subprocess.run(
            [*command, os.path.join(here, "torchrun_rank.py"), json.dumps({**job, **more})],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.load(out)


def with_torchrun(plan, expected):
    cut = plan.steps_per_epoch - 2
    first = torchrun(4, steps=cut)
    equal("torchrun: four ranks on two sidecars have one plan", first["plan"], plan.plan_id)
    equal("torchrun: four ranks read the global batches", first["steps"], expected[:cut])
    second = torchrun(2, steps=5, cursor=first["cursor"], workers=2)
    equal("torchrun: two ranks go on with them, over the end of the epoch", second["steps"], expected[cut : cut + 5])


def train_loop(config):
    import ray.train
    import ray.train.torch
    from bobbin_loader import BobbinDataset, BobbinError, BobbinMapDataset, Plan
    from torch.utils.data import DataLoader

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    sidecars = config["sidecars"]
    plan = Plan.create(config["reference"], global_batch=24, seed=6, sidecar=sidecars[rank * len(sidecars) // world])
    # The rank is torch.distributed's, which Ray has set up.
    dataset = BobbinDataset(plan, batched=True)
    assert (dataset.rank, dataset.world) == (rank, world)
    if config["cursor"]:
        dataset.load_state_dict({"cursor": config["cursor"]})
    steps, cursor = [], ""
    for epoch in range(2):
        for batch in DataLoader(dataset, batch_size=None):
            if len(steps) < config["steps"]:
                names = [[s.position, s.is_pad, s.logical_keys["jpg"]] for s in batch.samples]
                steps.append([batch.epoch, batch.step, names])
                cursor = batch.cursor
    # By number, where Ray's own sampler would divide once more.
    numbered = BobbinMapDataset(plan, decode=lambda s: s.position)
    told = "nothing was raised"
    try:
        list(ray.train.torch.prepare_data_loader(DataLoader(numbered, batch_size=24 // world)))
    except BobbinError as error:
        told = str(error)
    loader = DataLoader(numbered, batch_size=24 // world)
    prepared = ray.train.torch.prepare_data_loader(loader, add_dist_sampler=False)
    positions = [batch.tolist() for batch in prepared]
    streamed = DataLoader(BobbinDataset(plan, decode=lambda s: s.position), batch_size=24 // world)
    streamed = [batch.tolist() for batch in ray.train.torch.prepare_data_loader(streamed)]
    with open(os.path.join(config["out"], f"{rank}.json"), "w") as file:
        json.dump({"steps": steps, "cursor": cursor, "told": told, "by_number": [positions, streamed]}, file)
    ray.train.report({"steps": len(steps)})


def with_ray_train(workers, positions, cursor, steps):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as out:
        config = {"reference": reference, "sidecars": sidecars, "cursor": cursor, "steps": steps, "out": out}
        TorchTrainer(
            train_loop,
            train_loop_config=config,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=out, name="run"),
        ).fit()
        ranks = []
        for rank in range(workers):
            with open(os.path.join(out, f"{rank}.json")) as file:
                ranks.append(json.load(file))
    assert len({rank["cursor"] for rank in ranks}) == 1
    told = [rank["told"] for rank in ranks]
    words = (f"divides this dataset into {workers} parts", "add_dist_sampler=False")
    check("Ray Train: its sampler is refused, by number", all(w in one for one in told for w in words), told)
    for way in (0, 1):
        got = [sum(parts, []) for parts in zip(*(rank["by_number"][way] for rank in ranks))]
        equal("Ray Train: a prepared loader reads the global batches", got, positions)
    joined = [[s[0][0], s[0][1], sum((part[2] for part in s), [])] for s in zip(*(rank["steps"] for rank in ranks))]
    return joined, ranks[0]["cursor"]


def with_ray(plan, expected):
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    cut = plan.steps_per_epoch - 2
    positions = [[s.position for s in b.samples] for b in plan.batches()]
    first, cursor = with_ray_train(3, positions, "", cut)
    equal("Ray Train: three workers read the global batches", first, expected[:cut])
    second, _ = with_ray_train(2, positions, cursor, 4)
    equal("Ray Train: two go on with them", second, expected[cut : cut + 4])

    # Ray Data: steps are rows; where each is read is for Ray to say.
    def read(row):
        (batch,) = (plan.samples_at(range(row["id"] * 24, (row["id"] + 1) * 24)),)
        return {
            "step": row["id"],
            "keys": [s.logical_keys["jpg"] for s in batch],
            "bytes": [len(s["jpg"]) for s in batch],
        }

    rows = ray.data.range(plan.steps_per_epoch).map(read, concurrency=2).take_all()
    got = {row["step"]: list(row["keys"]) for row in rows}
    wanted = {step: [key for _, _, key in names] for epoch, step, names in expected if epoch == 0}
    equal("Ray Data: every step, by its number", got, wanted)
    ray.shutdown()


if __name__ == "__main__":
    plans = [Plan.create(reference, global_batch=24, seed=6, sidecar=sidecar) for sidecar in sidecars]
    check("sidecars that know nothing of each other make one plan", len({plan.plan_id for plan in plans}) == 1, plans)
    expected = expected_steps(plans[0])
    equal("and serve the same batches", expected_steps(plans[1]), expected)
    with_torchrun(plans[0], expected)
    with_ray(plans[0], expected)
