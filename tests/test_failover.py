"""The log on another server than before: after a promotion, with all loops running, and after a restore."""

import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from coupon_clock.app import Application, DatabaseUnavailable, Settings
from coupon_clock.local_servers.detached import as_user
from coupon_clock.local_servers.postgres import LocalPostgres, binaries, make_private, plain_environment, user_to_run_as
from examples import ending_in
from promotion import promote
from waiting import eventually

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def needs(program: str) -> pytest.MarkDecorator:
    """Some packages of PostgreSQL hold the server alone."""
    missing = not (binaries() / program).exists()
    return pytest.mark.skipif(missing, reason=f"this PostgreSQL comes without {program}")


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(tmp_path / "primary")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def standby(primary: LocalPostgres, tmp_path: Path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(tmp_path / "standby")
    server.folder.mkdir()
    user = user_to_run_as(server.folder)
    make_private(server.folder, user)
    command = [str(binaries() / "pg_basebackup"), "-d", primary.url, "-D", str(server.data), "-R", "--checkpoint=fast"]
    subprocess.run(as_user(user, command), check=True, cwd="/", env=plain_environment())
    server.start()
    yield server
    server.kill()


@needs("pg_basebackup")
def test_after_a_promotion_templates_end_within_seconds_and_all_alarms_are_armed_anew(primary, standby):
    hosts = f"{primary.socket_folder},{standby.socket_folder}"
    url = make_conninfo(primary.url, host=hosts, port="5432,5432", target_session_attrs="read-write")
    settings = Settings.load(database_url=url)
    Application.migrate(settings)
    soon, later = ending_in(4), ending_in(1800)
    with Application.open(settings) as app:
        app.execute_many([soon, later])
        given_armed(app, later)
    with Application.open(settings) as app, app.running():
        eventually(lambda: has_replayed(primary, standby))

        primary.kill()
        promote(standby)

        eventually(lambda: events_of(app, soon) == 2, within=10)
        app.execute(afterwards := ending_in(1))
        eventually(lambda: events_of(app, afterwards) == 2, within=10)
        eventually(lambda: armed_at(app, later) is None, within=20)
        assert app.maintenance.verify_promise().violations == []


def test_a_restored_database_is_armed_anew_by_a_relay_and_by_nothing_else(postgres, settings, database_url):
    template = ending_in(1800)
    with Application.open(settings) as app:
        app.execute(template)
        given_armed(app, template)
    name = conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}_restored TEMPLATE {name}")

    with Application.open(Settings.load(database_url=make_conninfo(database_url, dbname=f"{name}_restored"))) as app:
        app.execute(ending_in(1800))
        assert list(app.maintenance.verify_alarms()) == []
        assert armed_at(app, template) == LONG_AGO
        with app.running(["relay", "consumer"]):
            eventually(lambda: armed_at(app, template) is None)


@needs("pg_dump")
def test_a_database_restored_from_a_dump_under_running_loops_is_armed_anew(postgres, settings, database_url):
    template = ending_in(1800)
    with Application.open(settings) as app:
        app.execute(template)
        given_armed(app, template)
        dumped = subprocess.run(
            [str(binaries() / "pg_dump"), "-Fc", "-d", database_url], check=True, capture_output=True
        ).stdout
        with app.running():
            app.find(template.shop_number, template.template_id, at_least=1, timeout=20)
            assert armed_at(app, template) == LONG_AGO
            restore(postgres.url, database_url, dumped)

            eventually(lambda: armed_at(app, template) not in (LONG_AGO, False), within=30)
        assert list(app.maintenance.verify()) == []


def restore(server_url: str, database_url: str, dumped: bytes) -> None:
    """Under the same name, once it is whole."""
    name = conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}_new".encode())
        into = make_conninfo(database_url, dbname=f"{name}_new")
        subprocess.run([str(binaries() / "pg_restore"), "-e", "-d", into], input=dumped, check=True)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        connection.execute(f"ALTER DATABASE {name}_new RENAME TO {name}".encode())


@needs("pg_basebackup")
def test_a_recovery_to_a_point_in_time_in_the_same_place_is_armed_anew(primary, tmp_path):
    settings = Settings.load(database_url=primary.url)
    Application.migrate(settings)
    kept, lost = ending_in(1800), ending_in(1800)
    with Application.open(settings) as app:
        app.execute(kept)
        given_armed(app, kept)
        with app.running():
            base = base_backup(primary, tmp_path / "base")
            app.execute(lost)
            assert armed_at(app, kept) == LONG_AGO
            primary.kill()
            recover(primary, base)

            eventually(lambda: armed_at(app, kept) not in (LONG_AGO, False), within=30)
            assert events_of(app, lost) == 0
            again = app.execute(ending_in(1800))
        assert again.position == 2


def base_backup(server: LocalPostgres, folder: Path) -> Path:
    user = user_to_run_as(folder.parent)
    make_private(folder, user)
    command = [str(binaries() / "pg_basebackup"), "-d", server.url, "-D", str(folder), "--checkpoint=fast"]
    subprocess.run(as_user(user, command), check=True, cwd="/", env=plain_environment())
    return folder


def recover(server: LocalPostgres, base: Path) -> None:
    """To the end of the backup, on a new timeline."""
    settings = "restore_command = 'false'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n"
    with (base / "postgresql.auto.conf").open("a") as file:
        file.write(settings)
    (base / "recovery.signal").touch()
    shutil.rmtree(server.data)
    base.rename(server.data)
    server.start()


def given_armed(app: Application, template: object) -> None:
    """As by a broker that remembers, once the cluster is known."""
    known = "SELECT FROM coupon_clock.cluster_identity"
    with app.database.connection() as connection, app.running(["relay", "consumer"]):
        eventually(lambda: connection.execute(known).rowcount == 1)
    with app.database.connection() as connection:
        set_armed = "UPDATE coupon_clock.alarm SET armed_at = %s WHERE stream_id = %s"
        connection.execute(set_armed, (LONG_AGO, template.template_id))  # type: ignore[attr-defined]


def armed_at(app: Application, template: object) -> object:
    statement = "SELECT armed_at FROM coupon_clock.alarm WHERE stream_id = %s"
    try:
        with app.database.connection() as connection:
            found = connection.execute(statement, (template.template_id,)).fetchone()  # type: ignore[attr-defined]
    except (DatabaseUnavailable, psycopg.Error):
        return False
    return found[0] if found else False


def events_of(app: Application, template: object) -> int:
    try:
        return len(app.history(template.shop_number, template.template_id))  # type: ignore[attr-defined]
    except Exception:
        return 0


def has_replayed(primary: LocalPostgres, standby: LocalPostgres) -> bool:
    with psycopg.connect(primary.url) as one, psycopg.connect(standby.url) as other:
        written = one.execute("SELECT pg_current_wal_lsn()").fetchone()
        return bool(other.execute("SELECT pg_last_wal_replay_lsn() >= %s", written).fetchone() == (True,))
