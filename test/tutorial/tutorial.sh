#!/usr/bin/env bash
# The commands of README.md, from a data set in S3 to a detector that another machine has made again, to the byte.
#
#   BUCKET=s3://NAME IMAGE=REGISTRY/NAME:TAG REMOTE=URL tutorial.sh FOLDER
#
# README.md says what must be there. FOLDER is made. This one machine plays two, one after the other: each has a cache
# and a state of its own, and of the first nothing is left when the second begins.
set -euo pipefail
: "${BUCKET:?}" "${IMAGE:?}" "${REMOTE:?}"
TUTORIAL=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "${1:?which folder?}")

# become NAME: a machine that has no bytes, no records and no code
become() {
  mkdir -p "$folder"
  mkdir "$folder/$1"
  cd "$folder/$1"
  export BOBBIN_CACHE="$PWD/cache" BOBBIN_STATE="$PWD/state"
}

trap 'bobbin stop --force' EXIT
# Each command is shown before what it prints.
BASH_XTRACEFD=1 PS4='$ '
set -x

become first

: 1. Make a data set of the shape of COCO, and push it with the annotations as metadata of the images.
docker run --rm --network none --volume "$TUTORIAL:/tutorial:ro" --volume "$PWD:/here" \
  "$IMAGE" python3 /tutorial/make_dataset.py /here/dataset
python3 "$TUTORIAL/push_dataset.py" dataset "$BUCKET" cv/coco
bobbin ls "$BUCKET/cv/coco"
bobbin meta "$BUCKET/cv/coco" images/val/000000000401.jpg

: 2. The animals become a package of their own, and nothing is copied.
bobbin filter "$BUCKET/cv/coco" \
  --where "ends_with(key, '.jpg') && contains(meta.annotations[].supercategory, 'animal')" \
  --push "$BUCKET/cv/animals" -m 'The images with an animal'

: 3. Train on them in a container. The outputs become a package, with the record of how they were made.
git clone "$REMOTE" code
cp "$TUTORIAL"/code/*.py code
git -C code add .
git -C code commit -m 'Train a detector'
git -C code push origin HEAD
cd code
bobbin run --mount "$BUCKET/cv/animals:/data" --output ../output --push-output "$BUCKET/models/animals" \
  --network none "$IMAGE" python3 train.py /data
bobbin log "$BUCKET/models/animals"

: The first machine is gone, with its cache, its records, its code and its image.
bobbin stop
cd /
rm -rf "$folder/first"
docker image rm --force "$IMAGE"
become second

: 4. Make the model again from the record in its package.
bobbin install "$BUCKET/models/animals" model
bobbin record verify model
bobbin reproduce model --output again --allow-code
cmp model/model.safetensors again/model.safetensors
bobbin status

: 5. Evaluate it on images that it has not seen.
git clone "$REMOTE" code
cd code
bobbin run --mount "$BUCKET/cv/animals:/data" --volume "$PWD/../model:/model:ro" \
  --network none "$IMAGE" python3 evaluate.py /data /model
