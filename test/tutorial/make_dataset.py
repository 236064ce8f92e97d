"""Draws a data set of COCO's shape. Usage: make_dataset.py DIR

    DIR/images/train/*.jpg, DIR/images/val/*.jpg     64 x 64, on noise: an animal, a car, or both
    DIR/annotations/instances.json                   images, categories, and a box for each thing

The same files each time: every random number comes from one seed.
"""

import json
import math
import pathlib
import random
import sys

from PIL import Image, ImageDraw

SIDE = 64
IMAGES = {"train": 400, "val": 100}
CATEGORIES = [
    {"id": 3, "name": "car", "supercategory": "vehicle"},
    {"id": 17, "name": "cat", "supercategory": "animal"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
]


def noise(rng: random.Random) -> Image.Image:
    # Small and enlarged: larger spots than single pixels, so that there is something to mistake for an animal.
    spots = Image.frombytes("RGB", (SIDE // 2, SIDE // 2), bytes(rng.choices(range(60, 190), k=SIDE * SIDE * 3 // 4)))
    return spots.resize((SIDE, SIDE), Image.BILINEAR)


def fur(rng: random.Random) -> tuple:
    # Cats and dogs share their colours: only the ears tell one from the other.
    return (rng.randint(190, 255), rng.randint(100, 170), rng.randint(0, 60))


def draw_cat(draw: ImageDraw.ImageDraw, x: int, y: int, w: int, h: int, rng: random.Random) -> None:
    colour, ears = fur(rng), h // 3
    draw.ellipse((x, y + ears // 2, x + w, y + h), fill=colour)
    draw.polygon([(x, y), (x, y + h // 2), (x + w // 2, y + ears)], fill=colour)
    draw.polygon([(x + w, y), (x + w, y + h // 2), (x + w // 2, y + ears)], fill=colour)


def draw_dog(draw: ImageDraw.ImageDraw, x: int, y: int, w: int, h: int, rng: random.Random) -> None:
    colour, ear = fur(rng), max(2, w // 5)
    dark = tuple(value // 3 for value in colour)
    draw.ellipse((x + ear // 2, y, x + w - ear // 2, y + h), fill=colour)
    draw.ellipse((x, y + h // 6, x + ear, y + h * 5 // 6), fill=dark)
    draw.ellipse((x + w - ear, y + h // 6, x + w, y + h * 5 // 6), fill=dark)


def draw_car(draw: ImageDraw.ImageDraw, x: int, y: int, w: int, h: int, rng: random.Random) -> None:
    wheel = max(2, h // 3)
    draw.rectangle((x, y + h // 3, x + w, y + h - wheel // 2), fill=(rng.randint(0, 60), 80, rng.randint(150, 255)))
    draw.rectangle((x + w // 4, y, x + w * 3 // 4, y + h // 3), fill=(200, 220, 240))
    for at in (x + w // 6, x + w * 5 // 6 - wheel):
        draw.ellipse((at, y + h - wheel, at + wheel, y + h), fill=(20, 20, 20))


DRAW = {"car": draw_car, "cat": draw_cat, "dog": draw_dog}


def place(rng: random.Random, taken: list) -> tuple:
    """A box that leaves its neighbours alone."""
    while True:
        w, h = rng.randint(16, 28), rng.randint(16, 28)
        x, y = rng.randint(0, SIDE - 1 - w), rng.randint(0, SIDE - 1 - h)
        if all(math.dist((x + w / 2, y + h / 2), (a + c / 2, b + d / 2)) > 28 for a, b, c, d in taken):
            return x, y, w, h


def main(folder: pathlib.Path) -> None:
    rng = random.Random(2017)
    images, annotations = [], []
    for split, count in IMAGES.items():
        (folder / "images" / split).mkdir(parents=True)
        for _ in range(count):
            image_id = len(images) + 1
            picture = noise(rng)
            draw = ImageDraw.Draw(picture)
            animal = rng.choice(CATEGORIES[1:])
            things = rng.choice([[animal], [CATEGORIES[0], animal], [CATEGORIES[0]]])
            boxes: list = []
            for category in things:
                box = place(rng, boxes)
                boxes.append(box)
                DRAW[category["name"]](draw, *box, rng)
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category["id"]}
                annotations.append({**annotation, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0})
            name = f"{split}/{image_id:012}.jpg"
            picture.save(folder / "images" / name, quality=90)
            images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
    (folder / "annotations").mkdir()
    with open(folder / "annotations" / "instances.json", "w") as file:
        json.dump({"images": images, "annotations": annotations, "categories": CATEGORIES}, file)
    print(f"{len(images)} images, {len(annotations)} annotations")


main(pathlib.Path(sys.argv[1]))
