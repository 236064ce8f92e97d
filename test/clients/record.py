"""The record of a run, read by in-toto's and others' own libraries: nothing of it is of our invention alone."""

import base64
import json
import pathlib

from checks import check, equal, options
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from packageurl import PackageURL
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

given = options()
record = pathlib.Path(given["record"])


def parsed(name):
    document = json.loads((record / name).read_text())
    # Strict: a field that the specification does not have is an error.
    statement = ParseDict(document, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    return document


statement, trace = parsed("statement.json"), parsed("trace.json")
check("both are in-toto Statements", True)
provenance = ParseDict(statement["predicate"], provenance_pb2.Provenance())
equal("the provenance is SLSA's: its invocation", provenance.run_details.metadata.invocation_id, given["runId"])
digests = {one.name: dict(one.digest) for one in provenance.build_definition.resolved_dependencies}
equal("the data's top hash", digests["dataset"]["quiltTopHash"], given["topHash"])
equal("the code's commit", digests["source"]["gitCommit"], given["commit"])
check(
    "the run is over",
    provenance.run_details.metadata.finished_on.seconds >= provenance.run_details.metadata.started_on.seconds,
)
equal("subjects of the trace", [one["name"] for one in trace["subject"]], ["reads.jsonl"])

key = SSlibKey.from_dict(
    "any",
    {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": given["publicKey"]}},
)
lines = (record / "run.intoto.jsonl").read_text().splitlines()
equal("two envelopes", len(lines), 2)


def envelope_of(line, change=lambda payload: payload):
    document = json.loads(line)
    document["payload"] = base64.b64encode(change(base64.b64decode(document["payload"]))).decode()
    for signature in document["signatures"]:
        signature["keyid"] = "any"
    return Envelope.from_dict(document)


for line, name in zip(lines, ["statement.json", "trace.json"]):
    envelope = envelope_of(line)
    check(f"securesystemslib verifies the envelope of {name}", envelope.verify([key], 1))
    equal(f"its payload is {name}", json.loads(envelope.payload), json.loads((record / name).read_text()))
    try:
        envelope_of(line, lambda payload: payload.replace(b"sha256", b"sha257", 1)).verify([key], 1)
        check("a changed payload is refused", False)
    except VerificationError:
        check("a changed payload is refused", True)

found = PackageURL.from_string(given["imageUri"])
equal("the image's package URL", (found.type, found.name, found.qualifiers.get("tag")), ("oci", "trainer", "v1"))
