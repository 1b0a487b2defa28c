import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest

from coupon_clock.local_servers.detached import end
from coupon_clock.local_servers.errors import (
    DataFolderOccupied,
    FolderUnusable,
    LocalServersUnavailable,
    ServerDidNotStart,
)
from coupon_clock.local_servers.postgres import LocalPostgres, binaries, major_version, make_private


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(tmp_path / "postgres")
    yield server
    server.kill()


def answer(url: str, query: str = "SELECT 1") -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    return row and row[0]


def pid_of(postgres: LocalPostgres) -> int:
    process = postgres.process()
    assert process is not None
    return process.pid


def test_it_starts_once_and_keeps_its_data_over_a_stop(postgres: LocalPostgres) -> None:
    url = postgres.start()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    pid = pid_of(postgres)
    assert postgres.start() == url
    assert pid_of(postgres) == pid

    postgres.stop()
    assert not postgres.is_running()
    assert postgres.process() is None
    assert postgres.start() == url
    assert answer(url, "SELECT number FROM kept") == 7


def test_it_keeps_its_promises_to_the_log(postgres: LocalPostgres) -> None:
    url = postgres.start()
    assert answer(url, "SHOW fsync") == "on"
    assert answer(url, "SHOW synchronous_commit") == "on"
    assert answer(url, "SHOW server_encoding") == "UTF8"
    process = postgres.process()
    assert process is not None
    assert str(postgres.data) in process.cmdline()


def test_it_starts_again_after_its_postmaster_was_killed_with_a_session_at_work(postgres: LocalPostgres) -> None:
    url = postgres.start()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        os.kill(pid_of(postgres), signal.SIGKILL)
        postgres.start()
    assert answer(url, "SELECT number FROM kept") == 7


def test_it_outlives_the_process_that_started_it_and_the_next_one_adopts_it(postgres: LocalPostgres) -> None:
    start = (
        "from pathlib import Path; import os, signal;"
        "from coupon_clock.local_servers.postgres import LocalPostgres;"
        f"LocalPostgres(Path({str(postgres.folder)!r})).start();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    starter = subprocess.run([sys.executable, "-c", start])
    assert starter.returncode == -signal.SIGKILL
    pid = pid_of(postgres)
    assert answer(postgres.start()) == 1
    assert pid_of(postgres) == pid


def test_a_stale_pid_file_that_names_another_living_process_is_no_hindrance(postgres: LocalPostgres) -> None:
    postgres.start()
    pid_file = postgres.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    postgres.kill()
    other = subprocess.Popen(["sleep", "600"])
    try:
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        assert postgres.process() is None
        assert answer(postgres.start()) == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_an_initdb_killed_half_way_is_begun_anew(postgres: LocalPostgres) -> None:
    half_written = postgres.folder / "data.new"
    half_written.mkdir(parents=True)
    (half_written / "PG_VERSION").write_text("18\n")
    assert answer(postgres.start()) == 1
    assert not half_written.exists()


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"PG_VERSION": "18\n"}, {}])
def test_a_data_folder_that_is_not_postgresql_is_refused_and_left_alone(
    postgres: LocalPostgres, content: dict[str, str]
) -> None:
    postgres.data.mkdir(parents=True)
    for name, text in content.items():
        (postgres.data / name).write_text(text)
    with pytest.raises(DataFolderOccupied, match="choose another folder"):
        postgres.start()
    assert {path.name: path.read_text() for path in postgres.data.iterdir()} == content


def test_data_of_another_version_is_refused(postgres: LocalPostgres) -> None:
    (postgres.data / "global").mkdir(parents=True)
    (postgres.data / "global" / "pg_control").touch()
    (postgres.data / "PG_VERSION").write_text("14\n")
    with pytest.raises(DataFolderOccupied, match=f"something else than PostgreSQL {major_version()} data"):
        postgres.start()


def test_the_binaries_of_another_postgresql_can_be_named(
    postgres: LocalPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tmp_path / "others"
    others.symlink_to(binaries())
    monkeypatch.setenv("POSTGRES_BIN", str(others))
    assert binaries() == others
    assert str(answer(postgres.start(), "SHOW server_version")).startswith(major_version())


def test_a_folder_without_binaries_is_refused_by_the_name_of_its_setting(
    postgres: LocalPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_BIN", str(tmp_path))
    with pytest.raises(LocalServersUnavailable, match=f"POSTGRES_BIN is {tmp_path}"):
        postgres.start()


def test_a_server_that_gives_up_is_reported_with_its_last_telling_line(postgres: LocalPostgres) -> None:
    postgres.start()
    postgres.stop()
    with (postgres.data / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(ServerDidNotStart, match=r"PostgreSQL did not start: .*postgres\.log"):
        postgres.start()


def test_a_folder_too_deep_for_a_socket_and_with_spaces_works(tmp_path: Path) -> None:
    postgres = LocalPostgres(tmp_path / ("deep and " * 12).strip() / "deeper")
    try:
        assert answer(postgres.start()) == 1
    finally:
        postgres.kill()


def test_two_starters_at_once_get_the_same_server(postgres: LocalPostgres) -> None:
    with ThreadPoolExecutor(2) as threads:
        urls = set(threads.map(lambda _: LocalPostgres(postgres.folder).start(), range(2)))
    assert urls == {postgres.url}
    servers = [p for p in psutil.process_iter(["cmdline"]) if str(postgres.data) in (p.info["cmdline"] or [])]
    assert len(servers) == 1


def test_stopping_what_does_not_run_does_nothing(postgres: LocalPostgres) -> None:
    postgres.stop()
    postgres.kill()
    end([], signal.SIGTERM, within=0)
    assert not postgres.is_running()


def test_a_link_in_the_place_of_a_private_folder_is_refused_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o755)
    (tmp_path / "link").symlink_to(elsewhere)

    with pytest.raises(FolderUnusable, match="choose another folder"):
        make_private(tmp_path / "link", None)
    assert elsewhere.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_belongs_to_another_user_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, -1)

    with pytest.raises(FolderUnusable, match="belongs to another user"):
        make_private(tmp_path / "theirs", None)


def test_a_private_folder_that_is_there_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(0o777)
    make_private(tmp_path / "ours", None)
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700
