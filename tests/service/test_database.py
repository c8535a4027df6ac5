"""A PostgreSQL that does not answer is not waited for."""

import socket
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from service import database
from service.database import open_database
from service.settings import Settings


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://user:password@127.0.0.1:{mute.getsockname()[1]}/name"
        for patience, query in ({"connect_timeout": 2}, ""), ({"connect_timeout": 600}, "?connect_timeout=2"):
            monkeypatch.setattr(database, "_PATIENCE", database._PATIENCE | patience)
            began_s = time.monotonic()
            with pytest.raises(sa.exc.OperationalError, match="timeout"):
                open_database(Settings(data_dir=tmp_path, database_url=url + query))  # type: ignore[arg-type]
            assert time.monotonic() - began_s < 10
