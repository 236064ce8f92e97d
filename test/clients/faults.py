"""What the client notices: a proxy between it and the sidecar that damages, cuts and refuses."""

import os
import random
import socket
import threading
from collections import deque

from bobbin_loader import Plan
from checks import check, equal, options, refused

given = options()
sidecar = os.environ["BOBBIN_SIDECAR"][len("unix:") :]


class Proxy:
    """Passes bytes to the sidecar and back; each connection takes its fault from ``faults``, if there is one."""

    def __init__(self):
        self.faults = deque()
        self.connections = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = "http://127.0.0.1:%d" % self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self._server.accept()
            self.connections += 1
            fault = self.faults.popleft() if self.faults else None
            server = socket.socket(socket.AF_UNIX)
            server.connect(sidecar)
            threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, fault), daemon=True).start()

    def _pump(self, source, target, fault):
        passed = 0
        try:
            while data := source.recv(65536):
                if fault:
                    kind, at = fault
                    if kind == "digit":
                        # Of the first sample's metadata: JSON it stays.
                        at = passed + data.find(b'"label":') + 8 if b'"label":' in data[:-8] else -1
                    if passed <= at < passed + len(data):
                        if kind == "cut":
                            target.sendall(data[: at - passed])
                            break
                        flipped = bytearray(data)
                        flipped[at - passed] ^= 0x01 if kind == "digit" else 0x10
                        data = bytes(flipped)
                        fault = None
                target.sendall(data)
                passed += len(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def keys(batches):
    return [
        (b.step, [(s.position, sorted(s.logical_keys.values()), [*s.values()], s.meta) for s in b.samples])
        for b in batches
    ]


proxy = Proxy()
straight = Plan.create(given["reference"], global_batch=20)
expected = keys(straight.batches(transport="tar"))
plan = Plan.create(given["reference"], global_batch=20, sidecar=proxy.address)
equal("one plan behind both addresses", plan.plan_id, straight.plan_id)

random.seed(given["seed"])
wrong = []
for transport in ("tar", "paths"):
    for _ in range(20):
        before = proxy.connections
        proxy.faults.extend([("cut", random.randrange(0, 120_000)) for _ in range(3)])
        got = keys(plan.batches(transport=transport))
        if got != expected:
            wrong.append((transport, before))
        proxy.faults.clear()
equal("cut anywhere, three times over, an epoch has every sample once", wrong, [])

# Every byte of a small answer; what the flip hits decides whether it is noticed as damage, or is asked for again.
found = {"noticed": 0, "asked again": 0, "harmless": 0}
false = []
for _ in range(150):
    at = random.randrange(0, 60_000)
    proxy.faults.append(("flip", at))
    connections = proxy.connections
    try:
        got = keys(plan.batches(transport="tar", patience=5))
        if got != expected:
            false.append(at)
        found["asked again" if proxy.connections > connections + 1 else "harmless"] += 1
    except Exception as error:
        found["noticed"] += 1
        if type(error).__name__ not in ("BobbinError", "Refused"):
            false.append((at, repr(error)))
    proxy.faults.clear()
equal(f"no flipped byte is taken for data ({found})", false, [])
check("most are noticed", found["noticed"] > 100, found)

proxy.faults.append(("flip", 42_500))
with refused("and the error says which entry", "ANSWER_DAMAGED", "train/"):
    list(plan.batches(transport="tar"))
proxy.faults.clear()
for transport in ("tar", "paths"):
    proxy.faults.append(("digit", -1))
    with refused(f"{transport}: a wrong digit in metadata is noticed", "ANSWER_DAMAGED", "metadata"):
        list(plan.batches(transport=transport, verify=False))
    proxy.faults.clear()
unchecked = keys(plan.batches(transport="tar", verify=False))
equal("without verifying an undamaged answer is the same", unchecked, expected)
