#!/bin/sh
# Write the secrets of the cluster and gpu profiles, once, each into a file that only you may read:
#   deploy/compose/secrets.sh
# Containers get only the files that they need, as environment variables. Delete ray.env, or s3.env with aws.env, to get
# new ones. PostgreSQL takes its password when its volume is made: another one needs another volume.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets

random() { python3 -c 'import secrets; print(secrets.token_hex(24))'; }
value() { sed -n "s/^$2=//p" "secrets/$1"; }
once() { # NAME CONTENT; whole or not at all
    [ -e "secrets/$1" ] || { printf "%s\n" "$2" > "secrets/$1.new" && mv "secrets/$1.new" "secrets/$1"; }
}

# Before anything is written, and each on a line: a secret that could not be drawn ends the script.
token=$(random)
password=$(random)
access=$(random)
secret=$(random)
once ray.env "RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$token"
once postgres.env "POSTGRES_PASSWORD=$password"
once database.env "CURATOR_DATABASE_URL=postgresql://curator:$(value postgres.env POSTGRES_PASSWORD)@postgres/curator"
once s3.env "ROOT_ACCESS_KEY=$access
ROOT_SECRET_KEY=$secret"
once aws.env "AWS_ACCESS_KEY_ID=$(value s3.env ROOT_ACCESS_KEY)
AWS_SECRET_ACCESS_KEY=$(value s3.env ROOT_SECRET_KEY)"
ls -l secrets
