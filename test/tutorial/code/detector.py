"""A small detector of cats and dogs, what it learns from, and a file for its weights."""

import json
import os
import pathlib

import numpy
import torch
from PIL import Image

SIDE = 64
CLASSES = {"cat": 0, "dog": 1}


class Detector(torch.nn.Module):
    """Where is the animal, how large, and which one? It looks where its own map of the image is brightest."""

    def __init__(self):
        super().__init__()

        def block(before, after, stride):
            convolution = torch.nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            return [convolution, torch.nn.BatchNorm2d(after), torch.nn.ReLU()]

        self.features = torch.nn.Sequential(*block(3, 16, 2), *block(16, 32, 2), *block(32, 48, 1), *block(48, 48, 1))
        self.map = torch.nn.Conv2d(48, 1, 1)
        self.head = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4 + len(CLASSES)))
        # The middle of each cell of the map, as a part of the image's side.
        middles = (torch.arange(SIDE // 4) + 0.5) / (SIDE // 4)
        self.register_buffer("x", middles.repeat(SIDE // 4), persistent=False)
        self.register_buffer("y", middles.repeat_interleave(SIDE // 4), persistent=False)

    def forward(self, images):
        """Boxes as (middle x, middle y, width, height), in parts of the side; and a score for each class."""
        features = self.features(images)
        weights = self.map(features).flatten(1).softmax(1)
        seen = (features.flatten(2) * weights[:, None]).sum(2)
        head = self.head(seen)
        middle = torch.stack([(weights * self.x).sum(1), (weights * self.y).sum(1)], 1) + head[:, :2] * 0.1
        return torch.cat([middle, head[:, 2:4].sigmoid()], 1), head[:, 4:]


def read_examples(folder):
    """Images, boxes and classes. Each image's annotations are the metadata of its entry, which the mount has as an
    attribute of the file. (To read in shuffled batches, and more than fits into memory: bobbin_loader.BobbinDataset.)"""
    images, boxes, classes = [], [], []
    for path in sorted(pathlib.Path(folder).glob("*.jpg")):
        annotations = json.loads(os.getxattr(path, "user.quilt.meta"))["annotations"]
        animal = next(one for one in annotations if one["supercategory"] == "animal")
        x, y, w, h = animal["bbox"]
        images.append(numpy.asarray(Image.open(path), dtype=numpy.float32).transpose(2, 0, 1) / 255 - 0.5)
        boxes.append([(x + w / 2) / SIDE, (y + h / 2) / SIDE, w / SIDE, h / SIDE])
        classes.append(CLASSES[animal["category"]])
    return torch.tensor(numpy.stack(images)), torch.tensor(boxes), torch.tensor(classes)


def overlap(a, b):
    """Intersection over union, box by box."""
    low = torch.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(1)
    return shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared)


def save(model, path):
    """As safetensors: a length, a header in JSON, the numbers. Nothing in it depends on when or where it was written,
    which is more than torch.save or numpy.savez promise."""
    header, parts, at = {}, [], 0
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.to(torch.float32).numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def load(model, path):
    content = pathlib.Path(path).read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    state = {}
    for name, facts in json.loads(content[8:begin]).items():
        first, last = facts["data_offsets"]
        numbers = numpy.frombuffer(content[begin + first : begin + last], dtype="<f4").copy()
        state[name] = torch.from_numpy(numbers).reshape(facts["shape"])
    model.load_state_dict(state)
