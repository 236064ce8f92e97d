"""Batches of one revision of a Quilt data package, from a ``bobbin loader`` beside this process.

    from bobbin_loader import BobbinDataset, Plan

    plan = Plan.create("s3://bucket/ns/name@HASH", select=["**/*.jpg"], global_batch=256, seed=0)
    for batch in plan.batches(epoch=0):
        ...

Standard library only; the datasets work with torch's DataLoader where torch is installed.
"""

from .batches import Batch, Sample
from .cursor import Cursor
from .datasets import BobbinDataset, BobbinMapDataset
from .errors import BobbinError
from .plan import Plan

__all__ = ["Batch", "BobbinDataset", "BobbinError", "BobbinMapDataset", "Cursor", "Plan", "Sample"]
