"""PostgreSQL, perhaps with a standby, and RocketMQ: servers of the run's own, to be killed and wiped."""

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from chaos.proxy import Proxies
from coupon_clock.local_servers.detached import as_user
from coupon_clock.local_servers.postgres import LocalPostgres, binaries, make_private, plain_environment, user_to_run_as
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from promotion import promote

TOPIC, GROUP = "chaos-expiry", "chaos"

CONFIGURATION = """
track_commit_timestamp = on
max_connections = 120
"""
OF_A_PRIMARY = """
synchronous_standby_names = '*'
"""

# Time in both logs, with steps forward; and what callers and followers keep.
SCHEMA = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.step (at timestamptz, by_seconds float8);
CREATE TABLE chaos.probe (at timestamptz DEFAULT clock_timestamp());
CREATE TABLE chaos.callers_row (log text, command_id uuid, PRIMARY KEY (log, command_id));
CREATE TABLE chaos.followed (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    log text, follower text, position bigint, template uuid, version bigint
);
"""
STEPPED_CLOCK = """
CREATE OR REPLACE FUNCTION {}.now_utc() RETURNS timestamptz LANGUAGE sql VOLATILE AS
'SELECT clock_timestamp() + coalesce((SELECT sum(by_seconds) FROM chaos.step), 0) * ''1 second''::interval'
"""


class LogServers:
    """The primary, which may change, and proxies before it, one for each name."""

    def __init__(self, folder: Path, names: list[str], standby: bool) -> None:
        self._primary = LocalPostgres(folder / "primary")
        self._configure(self._primary, CONFIGURATION)
        self._standby = self._with_standby(folder) if standby else None
        self.proxies = Proxies(self._primary.url, names)

    @property
    def url(self) -> str:
        """Of the primary that is, past the proxies."""
        return self._primary.url

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, connect_timeout=10)

    def reset_settings(self) -> None:
        with self.connect() as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(connection.info.dbname)))

    def kill(self) -> None:
        self._primary.kill()

    def start(self) -> None:
        self._primary.start()

    def promote(self) -> None:
        """The primary is killed, the standby takes its place, and the proxies follow."""
        assert self._standby
        self._primary.kill()
        promote(self._standby)
        self._primary, self._standby = self._standby, None
        self.proxies.lead_to(self._primary.url)

    def end(self) -> None:
        self.proxies.close()
        for server in filter(None, (self._primary, self._standby)):
            server.kill()

    def _configure(self, server: LocalPostgres, lines: str) -> None:
        server.start()
        server.stop()
        with (server.data / "postgresql.auto.conf").open("a") as file:
            file.write(lines)
        server.start()

    def _with_standby(self, folder: Path) -> LocalPostgres:
        """In step: what is acknowledged is on both."""
        standby = LocalPostgres(folder / "standby")
        standby.folder.mkdir()
        user = user_to_run_as(standby.folder)
        make_private(standby.folder, user)
        source = ["-d", self._primary.url, "-D", str(standby.data), "-R", "--checkpoint=fast"]
        command = as_user(user, [str(binaries() / "pg_basebackup"), *source])
        subprocess.run(command, check=True, cwd="/", env=plain_environment())
        standby.start()
        self._configure(self._primary, OF_A_PRIMARY)
        return standby


def prepare(url: str, schemas: Iterable[str]) -> None:
    """Once these have their tables."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA)
        for schema in schemas:
            connection.execute(sql.SQL(STEPPED_CLOCK).format(sql.Identifier(schema)))


class MessageServer(NamedTuple):
    server: LocalRocketMQ

    def start(self) -> None:
        """With the topic and the group, also after a wipe."""
        self.server.start()
        self.server.provision(TOPIC, GROUP)

    def kill(self) -> None:
        self.server.kill()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        process = self.server.process()
        assert process
        process.suspend()
        try:
            yield
        finally:
            process.resume()

    def wipe(self) -> None:
        self.server.kill()
        for store in self.server.folder.glob("store*"):
            shutil.rmtree(store)
