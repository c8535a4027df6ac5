"""The folders of uploads: shared by several writers, left behind by killed ones, named after any tenant."""

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.problems import Problem
from service.settings import Settings
from service.uploads import clear_abandoned, list_uploads, read_digest, receive, tenant_folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", max_upload_bytes=1_000_000, upload_quota_bytes=2_500_000)


def left(settings: Settings) -> list[str]:
    """Whatever lies in the tenant's folder."""
    return sorted(os.listdir(tenant_folder(settings, "alice")))


def test_uploads_that_end_together_share_the_quota(settings: Settings) -> None:
    everyone = threading.Barrier(8)

    def upload(_: int) -> bool:
        try:
            with receive(settings, "alice", "x.txt", None) as receiver:
                everyone.wait()
                receiver.take(b"x" * 400_000)
                everyone.wait()
                receiver.keep()
        except Problem as problem:
            assert problem.code == "quota_exceeded"
            return False
        return True

    settings.uploads_dir.joinpath("alice").mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        kept = sum(pool.map(upload, range(8)))
    assert kept == 6
    assert len(left(settings)) == 6


def test_a_full_disk_is_told_and_nothing_is_left(settings: Settings) -> None:
    with pytest.raises(Problem) as raised, receive(settings, "alice", "x.txt", None) as receiver:
        receiver.take(b"some text")
        raise OSError(errno.ENOSPC, "no space")
    assert raised.value.status == 507
    assert left(settings) == []


RECEIVE = """
import sys, time
from pathlib import Path
from service.settings import Settings
from service.uploads import receive
with receive(Settings(data_dir=Path(sys.argv[1])), "alice", "x.txt", None) as receiver:
    receiver.take(b"x" * 1000)
    print("receiving", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_service_leaves_is_cleared_and_what_a_living_one_receives_is_not(settings: Settings) -> None:
    command = [sys.executable, "-c", RECEIVE, str(settings.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"receiving\n"
        (folder,) = tenant_folder(settings, "alice").iterdir()
        os.utime(folder, (1, 1))
        clear_abandoned(settings)
        assert folder.exists()
        process.send_signal(signal.SIGKILL)
    assert list_uploads(settings, "alice", 10) == []
    clear_abandoned(settings)
    assert not folder.exists()


# ------------------------------------------------------------------------------------------------ names of tenants


@given(
    st.lists(st.text(max_size=80) | st.sampled_from(["..", ".", "/", "a/b", "A", "a", "_", "_a", "\0", ""]), max_size=6)
)
def test_every_tenant_has_a_folder_of_its_own(tenants: list[str]) -> None:
    settings = Settings(data_dir=Path("/nonexistent/data"))
    folders = {tenant: tenant_folder(settings, tenant) for tenant in tenants}
    assert len({str(folder).lower() for folder in folders.values()}) == len(folders)
    for folder in folders.values():
        assert folder.parent == settings.uploads_dir
        assert folder.name.isascii()
        assert len(folder.name) <= 64
        assert Path(os.path.realpath(folder)) == folder


@given(st.lists(st.text(max_size=60), max_size=2))
def test_whatever_a_digest_header_holds(headers: list[str]) -> None:
    try:
        found = read_digest(*headers)
    except Problem as problem:
        assert problem.status == 400
    else:
        assert found is None or len(found) == 32
