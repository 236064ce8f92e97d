"""What the interop suite has quilt3 8.0.0 do. Usage: quilt3_actions.py ACTION JSON; prints JSON, on the last line."""

import hashlib
import json
import os
import pathlib
import random
import sys
import time

import boto3
import quilt3
from quilt3 import checksums

S3 = boto3.client("s3")
CHUNK_BYTES = 8 * 1024 * 1024

SMALL = {
    "README.md": b"# hello\n",
    "nested/deep/er/file.txt": b"deep",
    "nested/a": b"a",
    "nested-b": b"sorts after nested/ in the tree, before it as text",
    "same/one": b"the same bytes",
    "same/two": b"the same bytes",
    "empty": b"",
    ".hidden": b"hidden",
    "Case": b"upper",
    "case": b"lower",
    "trailing ": b"a space at the end",
    "tab\tand\nnewline": b"controls",
    "n" * 200: b"a long name",
    "unicode/caf\u00e9 NFC.txt": b"nfc",
    "unicode/cafe\u0301 NFD.txt": b"nfd",
    # UTF-16 would sort these two the other way round.
    "unicode/\U0001F600 emoji.txt": b"emoji",
    "unicode/\ufb01 ligature.txt": b"ligature",
    "unicode/\u65e5\u672c/\u8a9e": b"nihongo",
    "unicode/with space and 'single' and \"double\" quotes.txt": b"quotes",
    "unicode/hash#query?percent%25plus+and&more=~!$;@[]{}|^`<>.txt": b"marks",
    "unicode/back\\slash": b"backslash",
}

META = {
    "README.md": {"title": "hello", "n": 1},
    "nested/a": {},
    "nested/deep/er/file.txt": {
        "big": 9007199254740993,
        "bigger": -(2**70),
        "float": 1.0,
        "zero": -0.0,
        "huge": 1e20,
        "small": 1e-7,
        "exact": 0.1 + 0.2,
        "list": [1, 2.5, None, True, [], {}],
    },
    "unicode/\U0001F600 emoji.txt": {"\u00e9": "\u2603", "\U0001F600": "\ufb01", "nested": {"b": 1, "a": {"z": "\u007f\u2028\t\"\\"}}},
}


def call(client_method, **arguments):
    getattr(S3, client_method)(**arguments)
    return True


def make_bucket(name, versioned):
    S3.create_bucket(Bucket=name)
    if versioned:
        S3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return True


def put_text(bucket, key, text):
    S3.put_object(Bucket=bucket, Key=key, Body=text.encode())
    return True


def noise(length):
    return random.Random(length).randbytes(length)


def push(folder, registry, name, largest):
    """Two revisions that share most objects; gives their dumps, oldest first."""
    folder = pathlib.Path(folder)
    big = noise(max(largest, CHUNK_BYTES + 1))
    large = {
        "sizes/8MiB-1": big[: CHUNK_BYTES - 1],
        "sizes/8MiB": big[:CHUNK_BYTES],
        "sizes/8MiB+1": big[: CHUNK_BYTES + 1],
        "sizes/largest": big[:largest],
    }
    for key, value in {**SMALL, **large}.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
    package = quilt3.Package()
    package.set_dir("/", str(folder), meta={"about": "interop", "version": 1.0, "count": 2**60, "none": None})
    for key, meta in META.items():
        package[key].set_meta(meta)
    package["nested"].set_meta({"folder": "nested", "n": 1.50})
    package["unicode"].set_meta({"folder": ["\u00fc", 2**64]})
    first = package.push(name, registry, message="the first \u2603")
    dumps = [dump(name, registry, first.top_hash)]
    (folder / "README.md").write_bytes(b"# hello again\n")
    (folder / "added.txt").write_bytes(b"new")
    second = quilt3.Package.browse(name, registry=registry)
    second.delete("nested/a")
    second.set("README.md", str(folder / "README.md"), meta={"title": "again"})
    second.set("added.txt", str(folder / "added.txt"))
    # Pointers have whole seconds in their names.
    time.sleep(1.1)
    second = second.push(name, registry, message="the second")
    return [*dumps, dump(name, registry, second.top_hash)]


def package_bucket(source, registry, name):
    """A package over objects that lie in a bucket already; nothing is copied."""
    for key, value in {"x/one.txt": f"one of {source}", "x/two.txt": f"two of {source}", "x/sub/\u00fc #?": "odd"}.items():
        S3.put_object(Bucket=source, Key=key, Body=value.encode())
    package = quilt3.Package()
    package.set_dir("/", f"s3://{source}/x/")
    return push_in_place(package, registry, name)


def package_typed(source, registry, name, hash_type):
    """The objects of a bucket, known by hashes of another type than quilt3's default."""
    package = quilt3.Package()
    for size in [0, 1, 5000, CHUNK_BYTES, 2 * CHUNK_BYTES + 1]:
        key, value = f"{size} bytes", noise(size)
        S3.put_object(Bucket=source, Key=f"typed/{key}", Body=value)
        package.set(key, f"s3://{source}/typed/{key}")
        if hash_type == checksums.SHA256_HASH_NAME:
            found = checksums.legacy_calculate_checksum_bytes(value)
        else:
            found = checksums.calculate_multipart_checksum_bytes(value, checksum_type=hash_type)
        package[key].hash = {"type": hash_type, "value": found}
    return push_in_place(package, registry, name)


def push_in_place(package, registry, name):
    package.push(name, registry, message="in place", selector_fn=lambda *_: False)
    return dump(name, registry, quilt3.Package.browse(name, registry=registry).top_hash)


# By physical key: revisions share most objects.
SHA256 = {}


def push_folder(folder, registry, name, message=None, meta=None, workflow=..., parent=None, force=False):
    """A folder as it is, as a package of its own, or as what follows `parent`; gives its dump, or what quilt3 says."""
    package = quilt3.Package.browse(name, registry=registry, top_hash=parent) if parent else quilt3.Package()
    package.set_dir("/", folder, meta=meta)
    try:
        pushed = package.push(name, registry, message=message, workflow=workflow, force=force)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return dump(name, registry, pushed.top_hash)


def push_with_metas(folder, registry, name, message, metas, directories):
    """A folder, with metadata of some entries and folders."""
    package = quilt3.Package()
    package.set_dir("/", folder)
    for key, meta in [*metas.items(), *directories.items()]:
        package[key].set_meta(meta)
    return dump(name, registry, package.push(name, registry, message=message).top_hash)


def push_coco(folder, registry, name, message):
    """As the tutorial pushes its images (test/tutorial/push_dataset.py)."""
    coco = json.loads((pathlib.Path(folder) / "annotations.json").read_text())
    categories = {category["id"]: category for category in coco["categories"]}
    package = quilt3.Package()
    package.set_dir("/", folder)
    for image in coco["images"]:
        found = [annotation for annotation in coco["annotations"] if annotation["image_id"] == image["id"]]
        named = [
            {**annotation, **{"category": categories[annotation["category_id"]]["name"], "supercategory": categories[annotation["category_id"]]["supercategory"]}}
            for annotation in found
        ]
        package[f"images/{image['file_name']}"].set_meta({"annotations": named})
    return dump(name, registry, package.push(name, registry, message=message).top_hash)


def edited(name, registry, to, message, add, remove, metas):
    """Another revision of a package, as one of another name."""
    package = quilt3.Package.browse(name, registry=registry)
    for key in remove:
        package.delete(key)
    for key, path in add.items():
        package.set(key, path)
    for key, meta in metas.items():
        package[key].set_meta(meta)
    return dump(to, registry, package.push(to, registry, message=message, force=True).top_hash)


def push_objects(source, registry, name, message):
    """Of `s3://BUCKET/PREFIX/`, left where they lie."""
    package = quilt3.Package()
    package.set_dir("/", source)
    return dump(name, registry, package.push(name, registry, message=message, selector_fn=lambda *_: False).top_hash)


def put_objects(bucket, objects):
    """Objects as other programs leave them: by (key, size, part bytes or None, checksum algorithm or None)."""
    for key, size, part_bytes, algorithm in objects:
        more = {"ChecksumAlgorithm": algorithm} if algorithm else {}
        body = noise(size)
        if part_bytes is None:
            S3.put_object(Bucket=bucket, Key=key, Body=body, **more)
            continue
        upload = S3.create_multipart_upload(Bucket=bucket, Key=key, **more)["UploadId"]
        parts = []
        for number, start in enumerate(range(0, size, part_bytes), 1):
            part = S3.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body[start : start + part_bytes], **more
            )
            names = {name: value for name, value in part.items() if name == "ETag" or name == f"Checksum{algorithm}"}
            parts.append({"PartNumber": number, **names})
        S3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    return True


def build_local(folder, registry, name):
    """A manifest in a bucket, of files of this machine."""
    package = quilt3.Package()
    package.set_dir("/", folder)
    return package.build(name, registry=registry)


def local_top_hash(name):
    """As a user of quilt3 browses what is installed."""
    package = quilt3.Package.browse(name)
    assert [entry.get_bytes() for _, entry in package.walk()]
    return package.top_hash


def rolled_back(name, registry, top_hash):
    quilt3.Package.rollback(name, registry, top_hash)
    return quilt3.Package.browse(name, registry=registry).top_hash


def versions(name, registry):
    return sorted(list(version) for version in quilt3.list_package_versions(name, registry=registry))


def top_hash_of(folder, message, meta):
    """Of a folder, without any registry."""
    package = quilt3.Package()
    package.set_dir("/", folder, meta=meta)
    return package.build("a/b", message=message)


def filtered(name, registry, start, message):
    """The top hash of the entries whose keys start so, as a package of their own."""
    package = quilt3.Package.browse(name, registry=registry).filter(lambda key, entry: key.startswith(start))
    package._set_commit_message(message)
    return package.top_hash


def manifest(registry, top_hash):
    """As it lies there: rows as JSON values, without where the objects are."""
    bucket = registry.removeprefix("s3://")
    text = S3.get_object(Bucket=bucket, Key=f".quilt/packages/{top_hash}")["Body"].read().decode()
    rows = [json.loads(line) for line in text.split("\n") if line]
    return [{key: value for key, value in row.items() if key != "physical_keys"} for row in rows]


def uploads(bucket):
    """Keys of multipart uploads that are under way."""
    return [upload["Key"] for upload in S3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def dump(name, registry, top_hash):
    """Everything that quilt3 says of a revision, and the hash of every entry's bytes."""
    package = quilt3.Package.browse(name, registry=registry, top_hash=top_hash)
    entries = {}
    for key, entry in package.walk():
        place = str(entry.physical_key)
        if "versionId=" not in place or place not in SHA256:
            SHA256[place] = hashlib.sha256(entry.get_bytes()).hexdigest()
        entries[key] = {
            "size": entry.size,
            "hashType": entry.hash["type"],
            "hash": entry.hash["value"],
            "physicalKey": place,
            "meta": entry.meta,
            "sha256": SHA256[place],
        }
    return {"topHash": package.top_hash, "meta": package.meta, "directories": dict(directories(package)), "entries": entries}


def directories(package, prefix=""):
    for name, child in package._children.items():
        if isinstance(child, quilt3.Package):
            yield f"{prefix}{name}", child.meta
            yield from directories(child, f"{prefix}{name}/")


def install(name, registry, top_hash, dest):
    quilt3.Package.install(name, registry=registry, top_hash=top_hash, dest=dest)
    return True


def verify(name, registry, top_hash, folder):
    return quilt3.Package.browse(name, registry=registry, top_hash=top_hash).verify(folder)


def hash_tree(folder):
    """Reads every file below a folder: its size by stat, the hash of its bytes."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            digest, length = hashlib.sha256(), 0
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    length += len(block)
            size = os.stat(path).st_size
            assert size == length, f"{path}: stat says {size}, but there are {length} bytes"
            found[os.path.relpath(path, folder)] = {"size": size, "sha256": digest.hexdigest()}
    return found


def metadata_differences(dumps, which, rows, texts):
    """The keys whose metadata is not the same value to Python, types and all.

    dumps: what `push` gave, as text. rows: of `bobbin ls -R --json`. texts: of `bobbin meta`, by key.
    """
    dumped = json.loads(dumps)[which]
    theirs = {key: entry["meta"] for key, entry in dumped["entries"].items()}
    theirs |= {f"{key}/": meta for key, meta in dumped["directories"].items()}
    ours = {row["key"]: row["meta"] for row in map(json.loads, filter(None, rows.split("\n")))}
    differ = [key for key in theirs.keys() | ours.keys() if typed(theirs.get(key, "absent")) != typed(ours.get(key, "absent"))]
    theirs[""] = dumped["meta"]
    return sorted(differ) + [key for key, text in texts.items() if typed(theirs[key]) != typed(json.loads(text))]


def typed(value):
    """Equal only for equal types as well; 1, 1.0 and True are three values, 0.0 and -0.0 two."""
    if isinstance(value, dict):
        return {key: typed(member) for key, member in value.items()}
    if isinstance(value, list):
        return [typed(member) for member in value]
    return (type(value).__name__, repr(value))


if __name__ == "__main__":
    action, arguments = sys.argv[1], json.loads(sys.argv[2])
    # quilt3 prints what it does, hence the last line.
    print("\n" + json.dumps(globals()[action](**arguments)))
