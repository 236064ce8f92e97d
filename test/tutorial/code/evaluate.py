"""How good is a model on images that it has not seen? Usage: evaluate.py DATA MODEL"""

import json
import sys

import torch
from detector import Detector, load, overlap, read_examples

model = Detector()
load(model, f"{sys.argv[2]}/model.safetensors")
model.eval()
images, boxes, classes = read_examples(f"{sys.argv[1]}/images/val")
with torch.no_grad():
    found, scores = model(images)
accuracy = (scores.argmax(1) == classes).float().mean().item()
iou = overlap(found, boxes).mean().item()
print(json.dumps({"images": len(images), "accuracy": round(accuracy, 3), "iou": round(iou, 3)}))
