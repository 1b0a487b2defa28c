"""Throw-away databases, copied from one that has all tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from urllib.parse import quote, urlencode
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

from coupon_clock.app import Application
from coupon_clock.infrastructure.event_store.migrations import MIGRATIONS, script
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.registry import PROJECTIONS

TEMPLATE_LOCK = 1129271118


@contextmanager
def throw_away_database(server_url: str) -> Iterator[str]:
    """The URL of a new database on that server, with all tables in it; dropped afterwards.

    `server_url`: anything that libpq takes, of a user who may create databases, and with a database to connect to.
    Copied from a template database, which is made once a server and version of the tables.
    """
    template = _template(server_url)
    name = f"coupon_clock_test_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield in_database(server_url, name)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def in_database(server_url: str, name: str) -> str:
    """The URL of another database on the same server, which is named by a URL or by libpq's key=value pairs."""
    parameters = {key: value for key, value in conninfo_to_dict(server_url).items() if key != "dbname"}
    return f"postgresql:///{quote(name)}?{urlencode(parameters, safe='/', quote_via=quote)}"


def _template(server_url: str) -> str:
    tables = [(repr(projection.table(projection.name)), projection.fold_version) for projection in PROJECTIONS]
    shape = "".join(map(script, MIGRATIONS)) + str(tables)
    name = f"coupon_clock_template_{sha256(shape.encode()).hexdigest()[:16]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (TEMPLATE_LOCK,))
        (exists,) = connection.execute(
            "SELECT exists(SELECT FROM pg_database WHERE datname = %s AND datistemplate)", (name,)
        ).fetchone() or (False,)
        if not exists:
            connection.execute(f"DROP DATABASE IF EXISTS {name}")
            connection.execute(f"CREATE DATABASE {name}")
            Application.migrate(Settings.load(database_url=in_database(server_url, name)))
            connection.execute(f"ALTER DATABASE {name} IS_TEMPLATE true")
    return name
