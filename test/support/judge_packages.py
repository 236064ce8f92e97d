"""What quilt3 makes of manifests: {"diff": [[text, text], ...], "keys": text, ...} on stdin, answers on stdout."""

import io
import json
import sys

from quilt3 import Package


def load(text):
    return Package._load(io.StringIO(text))


def written_directories(package):
    return [row["logical_key"] for row in package.manifest if "physical_keys" not in row and "logical_key" in row]


task = json.load(sys.stdin)
directories = load(task["directories"])
answers = {
    "modified": load(task["before"]).diff(load(task["after"]))[1],
    "packages": [json.dumps(load(text).meta, separators=(",", ":")) for text in task["packages"]],
    "directories": [
        json.dumps(child.meta, separators=(",", ":")) for _, child in sorted(directories._children.items())
    ],
    "written": written_directories(directories),
    "entries": [json.dumps(entry.meta, separators=(",", ":")) for _, entry in load(task["entries"]).walk()],
    "keys": [json.dumps(key) for key, _ in load(task["keys"]).walk()],
    "topHash": load(task["keys"]).top_hash,
}
json.dump(answers, sys.stdout)
