"""A proxy between client and sidecar that encodes answers by itself, as middleboxes do, or gives its own."""

import gzip
import http.client
import http.server
import os
import socket
import threading

from bobbin_loader import Plan
from checks import check, equal, options, refused

given = options()
sidecar = os.environ["BOBBIN_SIDECAR"][len("unix:") :]


class Upstream(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sidecar)


class Middlebox(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # What it does to the answer's body, the encoding that it names, and to which requests.
    change, encoding, where = staticmethod(gzip.compress), "gzip", ""
    changed = 0

    def handle_any(self):
        length = int(self.headers.get("content-length", 0))
        upstream = Upstream("bobbin")
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        upstream.request(self.command, self.path, body=self.rfile.read(length), headers=headers)
        answer = upstream.getresponse()
        body, encoding = answer.read(), None
        if Middlebox.where in self.path:
            Middlebox.changed += 1
            body, encoding = Middlebox.change(body), Middlebox.encoding
        self.send_response(answer.status)
        self.send_header("content-type", answer.getheader("content-type") or "text/plain")
        if encoding:
            self.send_header("content-encoding", encoding)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = handle_any

    def log_message(self, *_):
        pass


def behaves(change, encoding="gzip", where=""):
    Middlebox.change, Middlebox.encoding, Middlebox.where, Middlebox.changed = change, encoding, where, 0


def contents(batches):
    return [(b.step, b.cursor, [(s.position, dict(s), s.meta) for s in b.samples]) for b in batches]


def once(change):
    """The first time so, and later gzipped as it should be."""

    def first(body):
        return change(gzip.compress(body)) if Middlebox.changed == 1 else gzip.compress(body)

    return first


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Middlebox)
server.handle_error = lambda *_: None
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"

straight = Plan.create(given["reference"], global_batch=20)
expected = contents(straight.batches(transport="tar"))
plan = Plan.create(given["reference"], global_batch=20, sidecar=address)
equal("a gzipped plan is that plan", plan.plan_id, straight.plan_id)
for transport in ("tar", "paths"):
    equal(f"{transport}: gzipped batches are those batches", contents(plan.batches(transport=transport)), expected)
check("they were gzipped", Middlebox.changed > 4, Middlebox.changed)
with refused("a gzipped problem is that problem", "CURSOR_FOREIGN"):
    plan.ask("GET", f"/v1/plans/{plan.plan_id}/batches?cursor={Plan.create(given['reference']).cursor()}")
behaves(once(lambda body: body[: len(body) // 2]), where="/batches")
equal("one that ends early is asked for again", contents(plan.batches(transport="tar")), expected)
check("and it was", Middlebox.changed > 1, Middlebox.changed)
# The last eight bytes are its checksum and its length.
behaves(once(lambda body: body[:-8] + bytes([body[-8] ^ 0xFF]) + body[-7:]), where="/batches")
with refused("one with a wrong checksum is not taken", "ANSWER_DAMAGED", "cannot be unpacked"):
    list(plan.batches(transport="tar"))
behaves(lambda body: body, encoding="br", where="/batches")
for transport in ("tar", "paths"):
    with refused(f"{transport}: an unknown encoding is refused by name", "ANSWER_DAMAGED", "br", "proxy", address):
        next(plan.batches(transport=transport))
behaves(lambda body: b"<html>Please log in</html>", encoding=None)
with refused("a page of the proxy's own is no plan", "ANSWER_DAMAGED", "<html>", "POST /v1/plans", address):
    Plan.create(given["reference"], global_batch=20, sidecar=address)
for transport in ("tar", "paths"):
    try:
        next(plan.batches(transport=transport, patience=0.2))
        check(f"{transport}: nor is it a batch", False)
    except Exception as error:
        name = type(error).__name__
        check(f"{transport}: nor is it a batch", name == "BobbinError", error)
behaves(gzip.compress, encoding=None)
with refused("nor is what was gzipped without saying so", "ANSWER_DAMAGED", "not JSON"):
    Plan.create(given["reference"], global_batch=20, sidecar=address)
server.shutdown()
