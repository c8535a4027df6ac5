#!/bin/sh
# Build an image: docker/build.sh service|worker-cpu|worker-gpu [TAG]
#
#   PYTHON_IMAGE   the base instead of the pinned one; VLLM_DIGEST (sha256:...) that of vLLM's image, for worker-gpu
#   PIP_OPTIONS    such as "--index-url https://mirror/simple", or "--no-index --find-links=/wheels" (docker/download.sh)
#   TORCH_OPTIONS  the same for PyTorch's build for CPUs
#   DOCKER         the command; docker
# No passwords in these: an image's history shows what it was built with. A commit that was changed is "...-dirty".
set -eu
cd "$(dirname "$0")/.."
name=${1:?name an image: service, worker-cpu or worker-gpu}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git describe --always --exclude='*' --abbrev=12 --dirty 2> /dev/null || echo unknown)
tag=${2:-token-curator/$name:$version}

file=docker/Dockerfile
set -- --target "$name"
if [ "$name" = worker-gpu ]; then
    file=docker/Dockerfile.worker-gpu
    if [ -z "${VLLM_IMAGE:-}" ]; then
        : "${VLLM_DIGEST:?set it to the digest of docker.io/vllm/vllm-openai:v0.32.0, as sha256:...}"
        set -- "$@" --build-arg "VLLM_DIGEST=$VLLM_DIGEST"
    fi
fi
for argument in PYTHON_IMAGE VLLM_IMAGE PIP_OPTIONS TORCH_OPTIONS; do
    value=$(printenv "$argument" || true)
    [ -z "$value" ] || set -- "$@" --build-arg "$argument=$value"
done
DOCKER_BUILDKIT=1 exec "${DOCKER:-docker}" build --file "$file" "$@" --tag "$tag" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" .
