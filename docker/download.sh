#!/bin/sh
# Fetch the files that an image's locks name into docker/wheels, for building where no index can be reached:
#   docker/download.sh service worker-cpu
#   PIP_OPTIONS="--no-index --find-links=/wheels" TORCH_OPTIONS="$PIP_OPTIONS" docker/build.sh service
# TORCH_OPTIONS says where PyTorch's build for CPUs is to be had.
set -eu
cd "$(dirname "$0")"
: "${PYTHON:=python3}" "${TORCH_OPTIONS:=--index-url https://download.pytorch.org/whl/cpu}"

fetch() {
    "$PYTHON" -m pip download --quiet --no-deps --require-hashes --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
        --dest wheels "$@"
}

[ $# -gt 0 ] || { echo "download.sh: name images: docker/download.sh service worker-cpu" >&2; exit 2; }
fetch -r locks/tools.txt
for image in "$@"; do
    fetch -r "locks/$image.txt"
    if [ "$image" = worker-cpu ]; then
        # shellcheck disable=SC2086  # options, separated by blanks
        fetch $TORCH_OPTIONS -r locks/torch-cpu.txt
    fi
done
