"""The scripts of docs/loader-recipes.md, as they stand there but for the package: every sample is read once."""

import os
import re
import subprocess
import sys
import tempfile

from checks import check, equal, options

given = options()
here = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(here, "..", "..", "docs", "loader-recipes.md")


def recipes():
    with open(DOCUMENT) as file:
        blocks = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
    for block in blocks:
        command, name = re.fullmatch(r"# (.*?)(\w+)\.py", block.split("\n", 1)[0]).groups()
        yield name, command.split(), block.replace("s3://BUCKET/NS/NAME@HASH", given["reference"])


def run(folder, name, command, script):
    path = os.path.join(folder, f"{name}.py")
    with open(path, "w") as file:
        file.write(script)
    program = [sys.executable, "-B"]
    if command[0] == "torchrun":
        program += ["-m", "torch.distributed.run", "--standalone", *command[1:]]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*program, path], env=env, capture_output=True, text=True, timeout=300)
    check(f"{name} comes to its end", done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:])
    ranks = re.findall(r"rank (\d): (\d+) samples", done.stdout + done.stderr)
    equal(f"{name}: two ranks", sorted({rank for rank, _ in ranks}), ["0", "1"])
    equal(f"{name}: every sample once", sum(int(count) for _, count in set(ranks)), len(given["keys"]))


if __name__ == "__main__":
    found = list(recipes())
    equal("the recipes are there", set(given["recipes"]) - {name for name, _, _ in found}, set())
    with tempfile.TemporaryDirectory() as folder:
        for name, command, script in found:
            if name in given["recipes"]:
                run(folder, name, command, script)
