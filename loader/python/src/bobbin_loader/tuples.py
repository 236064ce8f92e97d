"""Tuples that stay tuples on their way through torch.

A DataLoader without batches of its own (``batch_size=None``) makes lists of plain tuples, and so does its
``pin_memory``; named tuples stay as they are. What ``decode`` and ``collate`` give is therefore handed over as named
tuples, which are equal to the plain ones and unpack as they do. Lightning, accelerate and Ray keep them, too.
"""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache
from typing import Any


def kept(value: Any) -> Any:
    """The same value with named tuples for plain ones, also in lists and dicts."""
    kind = type(value)
    if kind is tuple:
        return _named(*map(kept, value))
    if kind is list:
        return [kept(item) for item in value]
    if kind is dict:
        return {name: kept(item) for name, item in value.items()}
    return value


def _named(*values: Any) -> Any:
    return _kind(len(values))(*values)


@lru_cache(maxsize=None)
def _kind(length: int) -> Any:
    fields: Any = namedtuple("Fields", [f"item_{i}" for i in range(length)])  # type: ignore[misc]
    return type("Decoded", (fields,), {"__slots__": (), "__reduce__": _reduced, "__repr__": tuple.__repr__})


def _reduced(value: Any) -> Any:
    """For pickle, which would look for the class in a module."""
    return _named, tuple(value)
