"""Trains the detector. Usage: train.py DATA [EPOCHS]; writes model.safetensors and log.jsonl to BOBBIN_OUTPUT.

The same bytes each time, on the same kind of processor: one seed, one thread, deterministic algorithms.
"""

import json
import os
import pathlib
import sys

import torch
from detector import Detector, overlap, read_examples, save

BATCH = 32

torch.manual_seed(0)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 40
output = pathlib.Path(os.environ["BOBBIN_OUTPUT"])
images, boxes, classes = read_examples(f"{sys.argv[1]}/images/train")
print(f"{len(images)} images of {os.environ['QUILT_HASH']}")

model = Detector()
optimizer = torch.optim.Adam(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs * -(-len(images) // BATCH))
with open(output / "log.jsonl", "w") as log:
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            found, scores = model(images[batch])
            loss = (1 - overlap(found, boxes[batch])).mean() + 5 * torch.nn.functional.l1_loss(found, boxes[batch])
            loss = loss + torch.nn.functional.cross_entropy(scores, classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(json.dumps({"epoch": epoch, "loss": round(total / len(images), 4)}), file=log)
save(model, output / "model.safetensors")
print(f"loss {total / len(images):.4f} after {epochs} epochs")
