"""Samples, and how the two forms of an answer become samples (loader/protocol.md, Batches and Tar)."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from .errors import damaged
from .hashes import check_object
from .tar import TarReader

_INDEX_NAME = "__bobbin__/index.json"
_INDEX_SCHEMA = "bobbin-index-1"
_END_NAME = "__bobbin__/end.json"
_READ_MAX = 2**30


class Sample(Dict[str, Any]):
    """The files of one sample: suffix -> bytes. Pickles, with its attributes."""

    __slots__ = ("position", "is_pad", "logical_keys", "meta", "errors")

    #: In its epoch, from 0.
    position: int
    #: It repeats an earlier one, to fill the last step: leave it out of the loss.
    is_pad: bool
    #: suffix -> logical key in the package.
    logical_keys: Dict[str, str]
    #: suffix -> the entry's metadata, or None; empty when the plan has ``meta=None``.
    meta: Dict[str, Any]
    #: With ``on_missing="mark"``: suffix -> {"code", "detail"} of files that cannot be had.
    errors: Dict[str, Dict[str, str]]


class Batch(NamedTuple):
    """A rank's part of one step."""

    #: A list of samples, or what ``collate`` made of it.
    samples: Any
    epoch: int
    step: int
    #: Where to go on behind this step: what to put into a checkpoint.
    cursor: str

    def __repr__(self) -> str:
        samples = self.samples
        if isinstance(samples, list):
            what = f"{len(samples)} {'samples' if all(isinstance(one, Sample) for one in samples) else 'items'}"
        else:
            what = type(samples).__name__
        return f"<Batch of epoch {self.epoch}, step {self.step}: {what}>"


def read_file(path: str, size: int) -> bytes:
    """Raises OSError when it is not there, or has not that size."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One byte more than there should be tells a file that has grown.
        data = os.read(fd, min(size + 1, _READ_MAX))
        if len(data) == size:
            return data
        parts = [data]
        have = len(data)
        while data and have <= size:
            data = os.read(fd, min(size + 1 - have, _READ_MAX))
            parts.append(data)
            have += len(data)
    finally:
        os.close(fd)
    if have != size:
        raise OSError(f"{path} has {have} bytes, not {size}")
    return b"".join(parts)


def samples_of_line(line: Mapping[str, Any], objects: str, verify: bool) -> List[Sample]:
    """Reads the files of one step's line below the folder of objects. Raises OSError, ANSWER_DAMAGED."""
    prefix = objects + "/"
    samples = []
    for row in line["samples"]:
        sample = Sample()
        sample.position = row["pos"]
        sample.is_pad = row["pad"]
        sample.meta = row.get("meta", {})
        sample.logical_keys = keys = {}
        sample.errors = {}
        for suffix, file in row["files"].items():
            keys[suffix] = file["key"]
            if "error" in file:
                sample.errors[suffix] = file["error"]
                continue
            path: str = file["path"]
            if path.startswith("/") or ".." in path.split("/"):
                raise damaged(f"{path!r} is not a path below the folder of objects")
            content = sample[suffix] = read_file(prefix + path, file["size"])
            if verify:
                check_object(content, file["hash"], file["key"])
        samples.append(sample)
    return samples


@contextmanager
def _well_formed(what: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(f"{what} is not what it should be ({error!r})") from error


class _Row(NamedTuple):
    position: int
    is_pad: bool
    step: Optional[int]
    files: Dict[str, Dict[str, Any]]
    #: Of the metadata member, where the plan has one.
    meta_sha256: Optional[str]


class TarIndex(NamedTuple):
    plan_id: str
    top_hash: str
    epoch: int
    steps: List[int]
    rows: List[_Row]
    sha256: str


def read_index(reader: TarReader) -> TarIndex:
    member = reader.next()
    if member is None or member.name != _INDEX_NAME:
        raise damaged("the answer does not begin with its index")
    with _well_formed("the index"):
        document = json.loads(member.content)
        if document["schema"] != _INDEX_SCHEMA:
            raise damaged(f"the index is {document['schema']!r}, not {_INDEX_SCHEMA!r}")
        return TarIndex(
            document["plan"],
            document["topHash"],
            document["epoch"],
            document["steps"],
            [
                _Row(int(row["pos"]), row["pad"], row["step"], row["files"], row.get("metaSha256"))
                for row in document["samples"]
            ],
            hashlib.sha256(member.content).hexdigest(),
        )


def steps_of_tar(
    reader: TarReader, index: TarIndex, meta_suffix: Optional[str], verify: bool
) -> Iterator[Tuple[Optional[int], List[Sample]]]:
    """Each step with its samples, the last one only when the end member has been seen. Raises Cut, ANSWER_DAMAGED."""
    members = 1
    step: Optional[int] = None
    samples: List[Sample] = []
    for row in index.rows:
        if samples and row.step != step:
            yield step, samples
            samples = []
        step = row.step
        with _well_formed(f"sample {row.position}"):
            sample, count = _sample_of_tar(reader, row, meta_suffix, verify)
        members += count
        samples.append(sample)
    with _well_formed("the end member"):
        _read_end(reader, index, members)
    if samples:
        yield step, samples


def _sample_of_tar(reader: TarReader, row: _Row, meta_suffix: Optional[str], verify: bool) -> Tuple[Sample, int]:
    sample = Sample()
    files = row.files
    sample.position = row.position
    sample.is_pad = row.is_pad
    sample.meta = {}
    sample.errors = {}
    sample.logical_keys = {suffix: file["key"] for suffix, file in files.items()}
    base = "%08d." % sample.position
    suffixes = sorted(files if meta_suffix is None else [*files, meta_suffix])
    for suffix in suffixes:
        member = reader.next()
        name = base + suffix
        if member is None or not member.name.startswith(name):
            raise damaged(f"{name} should come now, not {member and member.name!r}")
        content = member.content
        if suffix == meta_suffix:
            if hashlib.sha256(content).hexdigest() != row.meta_sha256:
                raise damaged(f"{name}: the metadata is not what the index says")
            sample.meta = json.loads(content)
        elif member.name == name:
            file = files[suffix]
            if len(content) != file["size"]:
                raise damaged(f"{file['key']} has {len(content)} bytes here, the package says {file['size']}")
            if verify:
                check_object(content, file["hash"], file["key"])
            sample[suffix] = content
        elif member.name == name + ".error.json":
            sample.errors[suffix] = json.loads(content)
        else:
            raise damaged(f"{name} should come now, not {member.name!r}")
    if sample.is_pad:
        member = reader.next()
        if member is None or member.name != base + "pad":
            raise damaged(f"{base}pad should come now, not {member and member.name!r}")
    return sample, len(suffixes) + sample.is_pad


def _read_end(reader: TarReader, index: TarIndex, members: int) -> None:
    before = reader.read
    member = reader.next()
    if member is None or member.name != _END_NAME:
        raise damaged(f"the end member should come now, not {member and member.name!r}")
    end = json.loads(member.content)
    if (end["members"], end["bytes"], end["indexSha256"]) != (members, before, index.sha256):
        raise damaged("the end member does not fit what came before it")
    if reader.next() is not None:
        raise damaged("there is a member behind the end member")
