"""A sidecar that lies: what it says is refused before it reaches a shell, a path or a clock."""

import http.server
import json
import threading

from bobbin_loader import Plan
from bobbin_loader.connection import Address
from bobbin_loader.connection import refused as refusal
from checks import check, equal, refused

FACTS = {
    "planId": "a" * 64,
    "package": "s3://bucket/a/b@" + "b" * 64,
    "topHash": "b" * 64,
    "samples": 1,
    "entries": 1,
    "bytes": 1,
    "bytesCached": None,
    "stepsPerEpoch": 1,
    "maxStepBytes": 1,
    "shardsPerEpoch": 1,
    "shards": "q" + "b" * 16 + "-p" + "a" * 16 + "-e{epoch}-w{world}r{rank}-{shard}.tar",
    "objects": "/nowhere",
    "plan": {"batch": {"global": 1}, "meta": None},
}


class Sidecar(http.server.BaseHTTPRequestHandler):
    answer = {}

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(self.answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sidecar)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"


def plan_of(**changes):
    Sidecar.answer = {**FACTS, **changes}
    return Plan.create("s3://bucket/a/b", sidecar=address)


equal("what a sidecar says is taken", len(plan_of().shard_urls()), 1)
# webdataset gives these to a shell.
commands = ["x'; touch /tmp/owned; '.tar", "$(touch owned){shard}.tar", "`x`"]
for shards in [*commands, "../x.tar", "a\n.tar", "a b.tar", 7, None]:
    with refused(f"no name of a shard: {shards!r}", "ANSWER_DAMAGED", "shards"):
        plan_of(shards=shards)
for name, value in {
    "planId": "../..",
    "topHash": "b" * 63 + "\n",
    "shardsPerEpoch": 10**12,
    "stepsPerEpoch": -1,
    "maxStepBytes": "many",
    "objects": 5,
    "plan": [],
}.items():
    with refused(f"no {name}: {value!r}", "ANSWER_DAMAGED", name):
        plan_of(**{name: value})

for text in ["inf", "nan", "-1", "1e300", "1000000000"]:
    asked = refusal(429, text, b"{}").retry_after
    check(f"it is asked again in bounded time, not in {text} s", asked is not None and 0 <= asked <= 60, asked)

plan = plan_of()
plan.address = Address.parse("unix:/tmp/it's")
equal(
    "a shell takes the socket's path for one word",
    plan.shard_urls()[0].split("--unix-socket ")[1].split(" http")[0],
    "'/tmp/it'\"'\"'s'",
)
server.shutdown()
