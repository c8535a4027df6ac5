#!/bin/sh
# Write the secrets of the cluster and gpu profiles, once, each into a file that only you may read:
#   deploy/compose/secrets.sh
# Containers get only the files that they need, as environment variables. Delete a file to get a new secret.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets

random() { python3 -c 'import secrets; print(secrets.token_hex(24))'; }
once() { [ -e "secrets/$1" ] || cat > "secrets/$1"; }

once ray.env << END
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(random)
END
password=$(random)
[ -e secrets/postgres.env ] || { printf 'POSTGRES_PASSWORD=%s\n' "$password" > secrets/postgres.env
    printf 'CURATOR_DATABASE_URL=postgresql://curator:%s@postgres/curator\n' "$password" > secrets/database.env; }
access=$(random) secret=$(random)
[ -e secrets/s3.env ] || { printf 'ROOT_ACCESS_KEY=%s\nROOT_SECRET_KEY=%s\n' "$access" "$secret" > secrets/s3.env
    printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$access" "$secret" > secrets/aws.env; }
ls -l secrets
