"""Pushes a folder of COCO's shape, each image with its annotations as metadata. Usage: push_dataset.py DIR BUCKET NAME"""

import collections
import json
import pathlib
import sys

import quilt3

folder, bucket, name = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
coco = json.loads((folder / "annotations" / "instances.json").read_text())
categories = {category["id"]: category for category in coco["categories"]}
annotations = collections.defaultdict(list)
for annotation in coco["annotations"]:
    category = categories[annotation["category_id"]]
    named = {"category": category["name"], "supercategory": category["supercategory"]}
    annotations[annotation["image_id"]].append({**annotation, **named})

package = quilt3.Package()
package.set_dir(".", str(folder))
for image in coco["images"]:
    package[f"images/{image['file_name']}"].set_meta({"annotations": annotations[image["id"]]})
package.push(name, registry=bucket, message="Cats, dogs and cars", force=True)
