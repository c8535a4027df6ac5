#!/bin/sh
# Installs from Debian what tests need and this machine lacks; `soak` names what only their long forms need.
# Each is "command:packages", packages joined by "+".
set -eu
PATH=$PATH:/usr/sbin:/sbin
needed="chromium:chromium+fonts-liberation curl:curl nginx:nginx-light cc:gcc+libc6-dev prometheus:prometheus"
if [ "${1-}" = soak ]; then
    needed="$needed munged:munge slurmctld:slurmctld+slurmd+slurm-client+slurm-wlm-basic-plugins"
fi
missing=
for each in $needed; do
    command -v "${each%%:*}" > /dev/null || missing="$missing $(echo "${each#*:}" | tr + ' ')"
done
[ -n "$missing" ] || exit 0
mkdir -p build
# shellcheck disable=SC2086
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
    > build/apt.log 2>&1 || { cat build/apt.log; exit 1; }
