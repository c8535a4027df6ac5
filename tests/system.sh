#!/bin/sh
# Installs from Debian what tests need and this machine lacks; `soak` names what only their long forms need.
# Each is "command:packages", packages joined by "+". Tests start their own servers: no daemon is started here.
set -eu
PATH=$PATH:/usr/sbin:/sbin
needed="chromium:chromium+fonts-liberation curl:curl nginx:nginx-light cc:gcc+libc6-dev prometheus:prometheus ip:iproute2"
if [ "${1-}" = soak ]; then
    needed="$needed munged:munge slurmctld:slurmctld+slurmd+slurm-client+slurm-wlm-basic-plugins"
fi
missing=
for each in $needed; do
    command -v "${each%%:*}" > /dev/null || missing="$missing $(echo "${each#*:}" | tr + ' ')"
done
[ -n "$missing" ] || exit 0
mkdir -p build

# What Debian asks before a package starts its daemon, with systemd or without; one that is there stays as it is.
policy=${POLICY:-/usr/sbin/policy-rc.d} own=
forget() {
    rm -f "$policy.$$"
    if [ -n "$own" ]; then rm -f "$policy"; fi
}
trap forget EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -w "$(dirname "$policy")" ] && [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy.$$"
    chmod 755 "$policy.$$"
    if ln "$policy.$$" "$policy" 2> /dev/null; then own=yes; fi # fails where another has put one there meanwhile
fi

# shellcheck disable=SC2086
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
    > build/apt.log 2>&1 || { cat build/apt.log; exit 1; }
