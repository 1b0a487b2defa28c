"""For users' own tests: a clock to turn, an application on a throw-away database, and given / when / then.

with throw_away_database(server_url) as url, turned_application(url, datetime(2026, 1, 1, tzinfo=UTC)) as app:
    given(app, CreateCouponTemplate(…))
    app.clock.advance(days=90)
    app.run_due()
    then(app, Ended(shop_number, EndReason.EXPIRED, ended_at))
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg

from coupon_clock.app import Application, Outcome
from coupon_clock.clockwork import Clockwork
from coupon_clock.domain.commands import ShopCommand
from coupon_clock.domain.errors import CouponError
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.broker import MemoryBroker
from coupon_clock.infrastructure.database import connect
from coupon_clock.infrastructure.follower import LogReader
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.schema import MIGRATIONS
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.registry import PROJECTIONS

TURNABLE = """
CREATE TABLE IF NOT EXISTS turned_clock (at timestamptz);
CREATE OR REPLACE FUNCTION coupon_clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT coalesce((SELECT at FROM turned_clock), clock_timestamp())';
"""

MOST_TICKS = 1_000
PAGE = 1_000
TEMPLATE_LOCK = 1129271118

Refusal = TypeVar("Refusal", bound=CouponError)


@contextmanager
def throw_away_database(server_url: str) -> Iterator[str]:
    """The URL of a new database on that server, with all tables in it; dropped afterwards.

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


@contextmanager
def turned_application(database_url: str, now: datetime, **settings: Any) -> Iterator["TurnedApplication"]:
    """An application whose PostgreSQL thinks it is `now` until the clock is turned. Only for a throw-away database."""
    given = Settings.load(database_url=database_url, sweep_grace=0, **settings)
    clock = TurnedClock(given, now)
    with TurnedApplication.open(given) as app:
        app.clock = clock
        app.reader = LogReader(app.pool, 0)
        app.ticks = [app.clockwork.parts(MemoryBroker()).run_once, *(each.run_once for each in app.projectors())]
        yield app


class TurnedClock:
    """PostgreSQL's time in one throw-away database and schema, turned by hand."""

    def __init__(self, settings: Settings, now: datetime) -> None:
        self._settings = settings
        with connect(settings) as connection:
            connection.execute(TURNABLE)
        self.set(now)

    def set(self, now: datetime) -> None:
        """`now`: an aware time."""
        self.now = now
        with connect(self._settings) as connection, connection.transaction():
            connection.execute("DELETE FROM turned_clock")
            connection.execute("INSERT INTO turned_clock VALUES (%s)", (now,))

    def advance(self, **by: float) -> None:
        """By days, hours, minutes, seconds, milliseconds, microseconds, as `timedelta` takes them."""
        self.set(self.now + timedelta(**by))


class TurnedApplication(Application):
    """An application with a clock to turn and nothing in the background: `run_due` does what the loops would."""

    clock: TurnedClock
    ticks: list[Callable[[], Counts]]
    reader: LogReader
    refusal: CouponError | None = None

    def run_due(self) -> Counts:
        """Runs relay, consumer, sweep and projectors until nothing is left to do at this time."""
        return run_due(self.clockwork, self.ticks)

    def happened(self) -> list[Event]:
        """All events since it was asked last, in the order of the log."""
        events: list[Event] = []
        while rows := self.reader.page(PAGE).rows:
            events += [self.store.envelope(row.stream_id, row.version, row.position, row.state).event for row in rows]
        return events


# ── given / when / then ──────────────────────────────────────────────────────────────────────────


def given(app: TurnedApplication, *commands: ShopCommand) -> None:
    """These happened before. Raises what one is refused with."""
    for command in commands:
        app.execute(command)
    app.happened()


def when(app: TurnedApplication, command: ShopCommand) -> Outcome | None:
    """This comes; None where it is refused, which `then_refused` wants to know and `then` takes for a failure."""
    try:
        return app.execute(command)
    except CouponError as refusal:
        app.refusal = refusal
        return None


def then(app: TurnedApplication, *events: Event) -> None:
    """These events have happened since the last `given` or `then`, in the order of the log, and no other."""
    assert app.refusal is None, f"refused: {app.refusal}"
    happened = app.happened()
    assert happened == list(events), f"happened: {happened}, not {list(events)}"


def then_nothing(app: TurnedApplication) -> None:
    """Nothing has happened since the last `given` or `then`."""
    then(app)


def then_refused(app: TurnedApplication, error: type[Refusal]) -> Refusal:
    """The last `when` was refused so, and nothing has happened. Answers with the refusal."""
    refusal, app.refusal = app.refusal, None
    assert isinstance(refusal, error), f"refused: {refusal!r}, not {error.__name__}"
    then_nothing(app)
    return refusal


# ── databases and ticks ──────────────────────────────────────────────────────────────────────────


def run_due(clockwork: Clockwork[Any, Any, Any], ticks: Sequence[Callable[[], Counts]]) -> Counts:
    """Runs these in turn until nothing is left to do at this time; for a clockwork alone, its `parts(…).run_once`."""
    clockwork.store.learn_time()
    done = Counts()
    for _ in range(MOST_TICKS):
        counts = sum((tick() for tick in ticks), Counts())
        if not counts:
            return done
        done += counts
    raise AssertionError(f"still busy after {MOST_TICKS} ticks: {done}")


def in_database(server_url: str, name: str) -> str:
    """The same URL with another database."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def _template(server_url: str) -> str:
    tables = [(repr(projection.table(projection.name)), projection.fold_version) for projection in PROJECTIONS]
    shape = "".join(MIGRATIONS) + str(tables)
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
