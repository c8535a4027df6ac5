#!/bin/sh
# Installs from Debian what tests need and this machine lacks: "command:packages", packages joined by "+".
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
for needed in chromium:chromium+fonts-liberation curl:curl nginx:nginx-light cc:gcc+libc6-dev prometheus:prometheus \
    ip:iproute2 munged:munge slurmctld:slurmctld+slurmd+slurm-client+slurm-wlm-basic-plugins; do
    command -v "${needed%%:*}" > /dev/null || missing="$missing $(echo "${needed#*:}" | tr + ' ')"
done
[ -n "$missing" ] || exit 0
mkdir -p build
# shellcheck disable=SC2086
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
    > build/apt.log 2>&1 || { cat build/apt.log; exit 1; }
