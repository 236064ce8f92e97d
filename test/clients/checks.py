"""What the scripts of this folder say: a line a check, which python.ts makes a test of."""

import json
import sys
from contextlib import contextmanager

from bobbin_loader import BobbinError


def check(name, condition, detail=None):
    print(json.dumps({"ok": bool(condition), "name": name, "detail": None if condition else repr(detail)}), flush=True)


def equal(name, actual, expected):
    check(name, actual == expected, {"actual": actual, "expected": expected})


@contextmanager
def refused(name, code, *words):
    try:
        yield
    except BobbinError as error:
        check(name, error.code == code and all(word in error.detail for word in words), error)
    else:
        check(name, False, "nothing was raised")


def say(**facts):
    """To the test, which may act on it."""
    print(json.dumps(facts), flush=True)


def options():
    return json.loads(sys.argv[1])
