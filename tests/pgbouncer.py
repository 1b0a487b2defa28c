"""A PgBouncer of the tests' own, in front of a local PostgreSQL. PGBOUNCER names its program."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from coupon_clock.local_servers.detached import end, launch, telling_line
from coupon_clock.local_servers.postgres import LocalPostgres, user_to_run_as
from waiting import eventually

PROGRAM = os.environ.get("PGBOUNCER", "")
SERVER_CONNECTIONS = 4
CONFIGURATION = """
[databases]
* = host={server} port=5432 user=postgres

[pgbouncer]
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 500
auth_type = any
unix_socket_dir = {folder}
listen_addr =
listen_port = 6432
admin_users = postgres
{more}
"""


@contextmanager
def pgbouncer(folder: Path, postgres: LocalPostgres, more: str = "") -> Iterator[str]:
    """In transaction mode, with few connections to PostgreSQL. Yields what takes the place of `host=…&port=…` in a URL.

    `more`: lines of its section [pgbouncer].
    """
    folder.mkdir()
    user = user_to_run_as(folder)
    if user:
        shutil.chown(folder, user)
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        CONFIGURATION.format(server=postgres.socket_folder, connections=SERVER_CONNECTIONS, folder=folder, more=more)
    )
    log = folder.parent / f"{folder.name}.log"
    pid = launch([PROGRAM, str(configuration)], log, user=user)
    try:
        eventually(lambda: (folder / ".s.PGSQL.6432").exists() or not psutil.pid_exists(pid))
        assert psutil.pid_exists(pid), telling_line(log)
        yield f"host={quote(str(folder), safe='/')}&port=6432"
    finally:
        if psutil.pid_exists(pid):
            end([psutil.Process(pid)], signal.SIGINT, within=10)


def through(address: str, database_url: str) -> str:
    """The URL of the same database through that pooler."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    return f"postgresql:///{name}?user=postgres&{address}"
