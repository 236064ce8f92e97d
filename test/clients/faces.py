"""Writes the labelled images that scikit-image ships (100 faces and 100 that are none, 25 x 25) as PNG files.

faces.py '{"folder": ...}'   prints {"<key>": <metadata>, ...}
"""

import json
import os
import sys

import numpy
import skimage.data
from PIL import Image

folder = json.loads(sys.argv[1])["folder"]
images = (skimage.data.lfw_subset() * 255).round().astype(numpy.uint8)
entries = {}
for i, image in enumerate(images):
    key = f"images/{i:03d}.png"
    os.makedirs(os.path.join(folder, "images"), exist_ok=True)
    Image.fromarray(image).save(os.path.join(folder, key))
    category = "face" if i < 100 else "background"
    entries[key] = {"annotations": [{"category": category, "bbox": [0, 0, 25, 25]}]}
print(json.dumps(entries))
