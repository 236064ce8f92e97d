"""Pairs of files as the real libraries write them, and how far their tensors are apart as those libraries see it."""
import json
import os
import sys
from collections import OrderedDict

import numpy as np
import torch
from safetensors.torch import save_file

options = json.loads(sys.argv[1])
folder = options["folder"]
torch.manual_seed(0)

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


def value(dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.rand(5, 7) > 0.5
    if dtype.is_complex or dtype.is_floating_point:
        return torch.randn(5, 7, dtype=torch.float64).to(dtype)
    return torch.randint(0, 100, (5, 7)).to(dtype)


def nudge(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    if tensor.dtype is torch.bool:
        changed[2, 3] = ~changed[2, 3]
    elif tensor.dtype.is_complex or tensor.dtype.is_floating_point:
        changed[2, 3] += 0.125
    else:
        changed[2, 3] += 3
    return changed


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.dtype.is_complex:
        return max(distance(a.real, b.real), distance(a.imag, b.imag))
    return (a.to(torch.float64) - b.to(torch.float64)).abs().max().item()


def say(recorded: str, found: str, expected: dict) -> None:
    print(json.dumps({"recorded": recorded, "found": found, **expected}), flush=True)


def path(name: str) -> str:
    return os.path.join(folder, name)


def pair(name: str, write, before: dict, after: dict, differences: dict, names: int) -> None:
    one, other = path(f"a-{name}"), path(f"b-{name}")
    write(before, one)
    write(after, other)
    say(one, other, {"names": names, "differences": differences})


before = {str(dtype).removeprefix("torch."): value(dtype) for dtype in DTYPES}
after = {name: nudge(tensor) for name, tensor in before.items()}
distances = {name: distance(before[name], after[name]) for name in before}
kept = [name for name in before if name != "complex128"]  # which safetensors has not
one, other = ({name: tensors[name] for name in kept} for tensors in (before, after))
pair("all.safetensors", save_file, one, other, {name: distances[name] for name in kept}, len(kept))
pair("equal.safetensors", save_file, one, dict(reversed(one.items())), {}, len(kept))

linear = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1)
linear(torch.randn(6, 4)).sum().backward()
optimizer.step()
wide = torch.randn(64, 64)


def checkpoint(scale: float, lr: float) -> dict:
    model = OrderedDict((name, tensor.clone()) for name, tensor in linear.state_dict().items())
    model["0.weight"] = model["0.weight"] + scale
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = lr
    return {
        "model": model,
        "optimizer": state,
        "epoch": 3,
        "big": 2**80,
        "name": "größe",
        "none": None,
        "raw": b"\x00\x01",
        "parameter": torch.nn.Parameter(torch.ones(2) * (1 + scale)),
        "transposed": (wide + scale).t(),
        "sliced": (wide + scale)[::2, 3:9],
        "view": (wide + scale).view(-1)[100:200],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "every": {name: (after if scale else before)[name] for name in before},
    }


first, second = checkpoint(0, 0.1), checkpoint(0.25, 0.2)
expected = {"model/0.weight": distance(first["model"]["0.weight"], second["model"]["0.weight"]), "optimizer/param_groups/0/lr": 0.1, "parameter": 0.25}
expected |= {name: distance(first[name], second[name]) for name in ("transposed", "sliced", "view")}
expected |= {f"every/{name}": found for name, found in distances.items()}
pair("checkpoint.pt", lambda value, at: torch.save(value, at), first, second, expected, -1)
pair("equal.pt", lambda value, at: torch.save(value, at), first, checkpoint(0, 0.1), {}, -1)
torch.save({"w": wide.t()}, path("a-layout.pt"))
torch.save({"w": wide.t().contiguous()}, path("b-layout.pt"))
say(path("a-layout.pt"), path("b-layout.pt"), {"names": 1, "differences": {}})
pair("state.pth", lambda value, at: torch.save(value, at), linear.state_dict(), linear.state_dict(), {}, -1)


def callbacks(out: str, score: float) -> dict:
    """As Lightning's ModelCheckpoint writes its state."""
    best = f"{out}/epoch=1.ckpt"
    return {"best_model_path": best, "dirpath": out, "best_k_models": {best: torch.tensor(score)}}


scores = {"best_k_models/$BOBBIN_OUTPUT/epoch=1.ckpt": 0.25}
pair("paths.ckpt", lambda value, at: torch.save(value, at), callbacks("/one/out", 1.5), callbacks("/another/out", 1.25), scores, 3)

arrays = {
    "f4": np.arange(12, dtype="<f4").reshape(3, 4),
    "big_endian": np.arange(12, dtype=">f8").reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12, dtype="<i8").reshape(3, 4)),
    "bool": np.array([True, False]),
    "half": np.array([1, 2, 65504], dtype="f2"),
    "complex": np.array([1 + 2j]),
    "text": np.array(["a", "bc"]),
    "time": np.array(["2026-01-01", "2026-01-03"], dtype="M8[D]"),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 3)),
    "large": np.arange(1_000_000, dtype="<f4"),
    "nan": np.array([np.nan, np.inf, -0.0]),
}
changed = {name: array.copy(order="K") for name, array in arrays.items()}
changed["f4"][1, 2] += 0.5
changed["big_endian"][2, 3] -= 2
changed["fortran"][0, 1] += 7
changed["large"][999_999] += 1
for name, save in (("plain.npz", np.savez), ("packed.npz", np.savez_compressed)):
    differences = {"f4": 0.5, "big_endian": 2, "fortran": 7, "large": 1}
    pair(name, lambda value, at: save(at, **value), arrays, changed, differences, len(arrays))
other = {**arrays, "nan": np.array([0.0, np.inf, 0.0]), "text": np.array(["a", "bd"]), "f4": np.zeros((4, 3), "<f4"), "new": np.ones(1)}
del other["bool"]
without = {"nan": None, "text": None, "f4": None, "bool": None, "new": None}
pair("other.npz", lambda value, at: np.savez(at, **value), arrays, other, without, len(arrays) + 1)
pair("one.npy", lambda value, at: np.save(at, value), arrays["f4"], changed["f4"], {"array": 0.5}, 1)

np.savez(path("objects.npz"), o=np.array([{"a": 1}], dtype=object))
torch.save({"model": linear}, path("module.pt"))
torch.save({"w": wide}, path("legacy.pt"), _use_new_zipfile_serialization=False)
np.savez(path("records.npz"), r=np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]))
for name, why in (
    ("objects.npz", "of objects or of records"),
    ("module.pt", 'names "torch.nn.modules'),
    ("legacy.pt", "not a file of tensors that is known"),
    ("records.npz", "objects or of records"),
):
    say(path(name), path(name), {"refused": why})
