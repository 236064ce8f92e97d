"""What the interop suite has quilt3 8.0.0 do. Usage: quilt3_actions.py ACTION JSON; prints JSON."""

import hashlib
import json
import pathlib
import sys

import boto3
import quilt3

S3 = boto3.client("s3")


def contents(keys):
    """Names and bytes; `keys` picks those that the server can store."""
    chunk = 8 * 1024 * 1024
    block = hashlib.sha256(b"bobbin").digest() * 32768
    big = (block * 101)[: 100 * 1024 * 1024]
    everything = {
        "README.md": b"# hello\n",
        "nested/deep/er/file.txt": b"deep",
        "nested/a": b"a",
        "nested-b": b"sorts after nested/ in the tree",
        "empty": b"",
        "unicode/caf\u00e9 NFC.txt": b"nfc",
        "unicode/cafe\u0301 NFD.txt": b"nfd",
        "unicode/\U0001F600 emoji.txt": b"emoji",
        "unicode/with space and 'quotes'.txt": b"space",
        "unicode/hash#query?percent%plus+.txt": b"marks",
        "sizes/8MiB-1": big[: chunk - 1],
        "sizes/8MiB": big[:chunk],
        "sizes/8MiB+1": big[: chunk + 1],
        "sizes/100MiB": big,
    }
    return {key: value for key, value in everything.items() if keys is None or key in keys}


META = {
    "README.md": {"title": "hello", "n": 1},
    "nested/deep/er/file.txt": {"big": 9007199254740993, "float": 1.0, "huge": 1e20, "small": 1e-7, "list": [1, 2.5, None, True]},
    "unicode/\U0001F600 emoji.txt": {"\u00e9": "\u2603", "nested": {"b": 1, "a": {"z": "\u007f"}}},
}


def bucket(name, versioned):
    S3.create_bucket(Bucket=name)
    if versioned:
        S3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


def push(folder, registry, name):
    """Two revisions that share most objects; returns their dumps, oldest first."""
    folder = pathlib.Path(folder)
    for key, value in contents(None).items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
    package = quilt3.Package()
    package.set_dir("/", str(folder), meta={"about": "interop", "version": 1.0, "count": 2**60})
    for key, meta in META.items():
        package[key].set_meta(meta)
    package["nested"].set_meta({"folder": "nested", "n": 1.50})
    first = package.push(name, registry, message="the first \u2603")
    (folder / "README.md").write_bytes(b"# hello again\n")
    (folder / "added.txt").write_bytes(b"new")
    (folder / "nested/a").unlink()
    second = quilt3.Package.browse(name, registry=registry)
    second.delete("nested/a")
    second.set("README.md", str(folder / "README.md"), meta={"title": "again"})
    second.set("added.txt", str(folder / "added.txt"))
    # Pointers have whole seconds in their names.
    import time
    time.sleep(1.1)
    second = second.push(name, registry, message="the second")
    return [dump(name, registry, first.top_hash), dump(name, registry, second.top_hash)]


def package_bucket(source, registry, name):
    """A package over objects that lie in a bucket already; nothing is copied."""
    for name_of_file in ("one", "two"):
        S3.put_object(Bucket=source, Key=f"x/{name_of_file}.txt", Body=f"{name_of_file} of {source}".encode())
    package = quilt3.Package()
    package.set_dir("/", f"s3://{source}/x/")
    package.push(name, registry, message="in place", selector_fn=lambda *_: False)
    return dump(name, registry, quilt3.Package.browse(name, registry=registry).top_hash)


def dump(name, registry, top_hash):
    """Everything that quilt3 says of a revision, and the hash of every entry's bytes."""
    package = quilt3.Package.browse(name, registry=registry, top_hash=top_hash)
    entries = {}
    for key, entry in package.walk():
        entries[key] = {
            "size": entry.size,
            "hashType": entry.hash["type"],
            "hash": entry.hash["value"],
            "physicalKey": str(entry.physical_key),
            "meta": entry.meta,
            "sha256": hashlib.sha256(entry.get_bytes()).hexdigest(),
        }
    return {"topHash": package.top_hash, "meta": package.meta, "entries": entries}


def install(name, registry, top_hash, dest):
    quilt3.Package.install(name, registry=registry, top_hash=top_hash, dest=dest)
    return True


def verify(name, registry, top_hash, folder):
    return quilt3.Package.browse(name, registry=registry, top_hash=top_hash).verify(folder)


def texts_of(text):
    """The metadata in a dump, each as JSON text: of the package, then of the entries."""
    dumped = json.loads(text)
    return [json.dumps(meta) for meta in [dumped["meta"], *(entry["meta"] for entry in dumped["entries"].values())]]


def same_json(pairs):
    """Are the JSON texts of each pair the same values to Python, types and all?"""

    def typed(value):
        if isinstance(value, dict):
            return {key: typed(member) for key, member in value.items()}
        if isinstance(value, list):
            return [typed(member) for member in value]
        return (type(value).__name__, value)

    return [typed(json.loads(a)) == typed(json.loads(b)) for a, b in pairs]


def call(client_method, **arguments):
    getattr(S3, client_method)(**arguments)
    return True


if __name__ == "__main__":
    action, arguments = sys.argv[1], json.loads(sys.argv[2])
    # quilt3 prints what it does; the answer is the last line.
    print("\n" + json.dumps(globals()[action](**arguments)))
