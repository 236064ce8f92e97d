#!/usr/bin/env bash
# Makes the file system of the image that the tutorial's test trains in: Debian's python3 with torch (for processors
# alone: PyPI's brings gigabytes of CUDA) and Pillow, without asking a registry of images. It is what
# test/tutorial/Dockerfile makes, less what takes up room and is not loaded here.
#
#   trainer-image.sh OUT.tar
set -euo pipefail
out=$(realpath -m "$1")
root=$(mktemp -d)
trap 'rm -rf "$root" "$out.new"' EXIT

# Only unpacked: what packages set up when they are installed, a training script does not need …
mmdebstrap --quiet --mode=root --format=directory --variant=extract \
  --include=python3-torch,python3-pil,dash,coreutils bookworm "$root"
# … but for this choice.
for name in blas lapack; do
  ln -s "$name/lib$name.so.3" "$root/usr/lib/$(uname -m)-linux-gnu/lib$name.so.3"
done

# Drivers of screens, perl, and mathematics by formula: half of the bytes.
unused=(usr/share var 'libLLVM*' 'libz3*' dri perl 'perl*' 'libperl*' gdal gcc sympy mpmath hypothesis tests
  usr/lib/python3.11/test)
tar -C "$root" "${unused[@]/#/--exclude=}" -cf "$out.new" .
mv "$out.new" "$out"
