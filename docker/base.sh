#!/bin/sh
# Make a stand-in for docker.io/library/python:3.11-slim-bookworm where no registry can be reached: the same Debian with
# its own Python 3.11, from the configured package mirror. Needs root and debootstrap.
#   docker/base.sh local/python-slim:bookworm
set -eu
image=${1:?name the image to make, such as local/python-slim:bookworm}
root=$(mktemp -d)
trap 'rm -rf "$root" "$root.log"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,tzdata,netbase bookworm "$root" \
    ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} > "$root.log" || { tail -20 "$root.log" >&2; exit 1; }
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
    "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/var/cache/debconf/*-old
find "$root/usr/share/doc" -type f ! -name copyright -delete # the licences stay: whoever passes the image on needs them
for name in python python3; do ln -s /usr/bin/python3.11 "$root/usr/local/bin/$name"; done
tar -C "$root" -c . | "${DOCKER:-docker}" import \
    --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'CMD ["python3"]' - "$image"
