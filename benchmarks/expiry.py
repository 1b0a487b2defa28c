"""How punctual ends are, and what it costs: light load, many at one instant, relay, idle reconciler, neighbours.

Lateness is read from PostgreSQL's clock after the append of the end has returned: when it was committed, not decided.
One process runs all loops, with default settings; RocketMQ's own client is measured beside it. Six minutes.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import ceil
from statistics import median
from time import monotonic, sleep
from typing import Any

import psycopg
from measure import Figure, arguments, at_least, at_most, create, quantile, say, servers, tell
from neighbour import Neighbour
from raw_rocketmq import lateness, send

from coupon_clock.app import Application, Settings
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.event_store.recorder import DueStream
from coupon_clock.infrastructure.event_store.store import Append, Appended, Busy, Conflict
from coupon_clock.infrastructure.loop import tune_interpreter
from coupon_clock.infrastructure.scheduling.reconciler import Reconciler
from coupon_clock.infrastructure.scheduling.relay import Relay
from coupon_clock.local_servers.servers import LocalServers
from coupon_clock.runtime import broker_for
from coupon_clock.testing import throw_away_database

LIGHT, LIGHT_EVERY_S = 300, 0.05
MANY, VERY_MANY = 10_000, 100_000
RELAYED, ROUNDS = 4_000, 5
IDLE_ALARMS, IDLE_ROUNDS = 1_000_000, 300
SENT_PER_S = 1_500
"""Slower than the relay is, so that all messages are on their way before the instant."""
PATIENCE_S = 60.0

IDLE_TABLES = (
    "CREATE TABLE plain AS SELECT gen_random_uuid() AS id, now() + interval '1 day' AS valid_until, false AS ended"
    f" FROM generate_series(1, {IDLE_ALARMS})",
    "CREATE INDEX ON plain (valid_until) WHERE NOT ended",
    "INSERT INTO coupon_clock.alarm SELECT id, valid_until FROM plain",
    "VACUUM ANALYZE coupon_clock.alarm, plain",
)
BARE = """
WITH due AS MATERIALIZED (
     SELECT stream_id, version, topic, ending FROM coupon_clock.alarm WHERE due_at <= now() ORDER BY stream_id),
     ended AS (
     INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state, command_id, cause)
     SELECT stream_id, version + 1, topic, ending, gen_random_uuid(), 'reconciler' FROM due ORDER BY stream_id
     RETURNING originator_id)
DELETE FROM coupon_clock.alarm USING ended WHERE stream_id = originator_id
"""
IDLE_UPDATE = "UPDATE plain SET ended = true WHERE NOT ended AND valid_until <= now()"


# ── what is measured ─────────────────────────────────────────────────────────────────────────────


def light_load(running: LocalServers) -> Iterator[Figure]:
    say(f"light load: {LIGHT} ends, one every {LIGHT_EVERY_S} s")
    with application(running, "light") as app, app.running():
        start = datetime.now(UTC) + timedelta(seconds=15)
        late = ended(app, [start + timedelta(seconds=n * LIGHT_EVERY_S) for n in range(LIGHT)])
    say("light load, raw client")
    first = ceil(datetime.now(UTC).timestamp()) + 8
    raw = lateness(provisioned(running, "raw-light"), "raw-light", "raw-light", [first + n // 20 for n in range(LIGHT)])
    for share, target in ((0.5, 5), (0.99, 20)):
        ours, theirs = 1_000 * quantile(late, share), 1_000 * quantile(raw, share)
        yield at_most(f"light load, end to committed, p{100 * share:.0f}", ours, "ms", target, theirs)


def many_at_one_instant(running: LocalServers) -> Iterator[Figure]:
    say(f"{MANY:,} ends at one instant")
    with application(running, "many") as app, app.running():
        late = ended(app, [instant_for(MANY)] * MANY)
    say(f"{MANY:,} at one instant, raw client")
    instant = ceil(instant_for(MANY).timestamp())
    raw = lateness(provisioned(running, "raw-many"), "raw-many", "raw-many", [instant] * MANY)
    yield at_most(f"{MANY:,} ends at one instant, the last committed", max(late), "s", 0.2, max(raw))


def very_many_at_one_instant(running: LocalServers) -> Iterator[Figure]:
    say(f"{VERY_MANY:,} ends at one instant, and a neighbour with 50 commands a second")
    with application(running, "very-many") as app, app.running():
        with Neighbour(app.settings.database()) as neighbour:
            instant = instant_for(VERY_MANY)
            late = ended(app, [instant] * VERY_MANY)
        waits = neighbour.between(instant, instant + timedelta(seconds=max(late)))
    p99 = 1_000 * quantile(waits, 0.99)
    yield at_most(f"{VERY_MANY:,} ends at one instant, the last committed", max(late), "s", 2)
    yield at_most("command from another process meanwhile, p99", p99, "ms", 100)


def endings(running: LocalServers) -> Iterator[Figure]:
    """What PostgreSQL alone takes for as many rows is the reference: the same inserts and deletes in one statement."""
    for count, target in ((MANY, 4), (VERY_MANY, 1.6)):
        say(f"{count:,} endings: in pages, and in one bare statement")
        ours = seconds_to_end(running, count, lambda app: app.runtime.handle_due([], "reconciler"))
        bare = seconds_to_end(running, count, end_by_one_statement)
        yield at_most(f"{count:,} prepared endings, in pages", ours, "s", round(target * bare, 3), bare)


def seconds_to_end(running: LocalServers, count: int, end: Callable[[Application], object]) -> float:
    with (
        throw_away_database(running.postgres.url) as url,
        Application.open(Settings.load(database_url=url)) as app,
    ):
        instant = datetime.now(UTC) + timedelta(seconds=2 + count / 5_000)
        create(app, [instant] * count)
        with app.database.connection() as connection:
            connection.execute("ANALYZE coupon_clock.alarm, coupon_clock.event")
        sleep(max(0.0, (instant - datetime.now(UTC)).total_seconds()))
        return seconds(lambda: end(app))


def end_by_one_statement(app: Application) -> None:
    with app.database.connect() as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute(BARE)


def relay(running: LocalServers) -> Iterator[Figure]:
    say(f"relay: {ROUNDS} rounds of {RELAYED:,}, alternating with the raw client")
    endpoints = provisioned(running, "raw-relay")
    in_half_an_hour = ceil(datetime.now(UTC).timestamp()) + 1_800
    ours, raw = [], []
    with application(running, "relay") as app:
        broker = broker_for(app.settings)
        for _ in range(ROUNDS):
            raw.append(RELAYED / send(endpoints, "raw-relay", [in_half_an_hour] * RELAYED))
            create(app, [datetime.now(UTC) + timedelta(minutes=30)] * RELAYED)
            ours.append(RELAYED / relayed(Relay(app.runtime.alarms, broker, app.runtime.clock, app.settings.lead_time)))
            say(f"relay {ours[-1]:,.0f}/s, raw {raw[-1]:,.0f}/s")
        broker.close()
    yield at_least("relay, alarms to stored messages", median(ours), "1/s", 0.8 * median(raw), median(raw))


def relayed(relay: Relay) -> float:
    """Seconds until it finds nothing more to do."""
    started = monotonic()
    while relay.run_once():
        pass
    return monotonic() - started


def idle_reconciler(running: LocalServers) -> Iterator[Figure]:
    say(f"idle reconciler over {IDLE_ALARMS:,} alarms")
    with (
        throw_away_database(running.postgres.url) as url,
        Application.open(Settings.load(database_url=url)) as app,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        for statement in IDLE_TABLES:
            connection.execute(statement)
        reconciler = Reconciler(app.runtime.handle_due, timedelta(seconds=1))
        ours = median(seconds(reconciler.run_once) for _ in range(IDLE_ROUNDS))
        plain = median(seconds(lambda: connection.execute(IDLE_UPDATE)) for _ in range(IDLE_ROUNDS))
    yield at_most(f"idle reconciler over {IDLE_ALARMS:,} alarms, median", 1_000 * ours, "ms", 1, 1_000 * plain)


def seconds(call: Callable[[], object]) -> float:
    started = monotonic()
    call()
    return monotonic() - started


# ── how it is measured ───────────────────────────────────────────────────────────────────────────


def provisioned(running: LocalServers, name: str) -> str:
    """The endpoints of a RocketMQ with a topic and a group of that name."""
    assert running.rocketmq
    running.rocketmq.provision(name, name)
    return running.rocketmq.endpoints


@contextmanager
def application(running: LocalServers, name: str) -> Iterator[Application]:
    """On a database, a topic and a group of its own; all other settings are the defaults."""
    endpoints = provisioned(running, name)
    with throw_away_database(running.postgres.url) as url:
        settings = Settings.load(
            database_url=url, rocketmq_endpoints=endpoints, rocketmq_topic=name, rocketmq_group=name
        )
        with Application.open(settings) as app:
            yield app


def instant_for(count: int) -> datetime:
    """Far enough for so many to be on their way before."""
    return datetime.now(UTC) + timedelta(seconds=12 + count / SENT_PER_S)


def ended(app: Application, ends: Sequence[datetime]) -> list[float]:
    """Creates templates with these ends, waits until all have ended, and returns their lateness in seconds."""
    commits = Commits(app)
    create(app, ends)
    give_up_at = monotonic() + (max(ends) - datetime.now(UTC)).total_seconds() + PATIENCE_S
    while commits.endings < len(ends) and monotonic() < give_up_at:
        sleep(0.1)
    late = commits.lateness()
    say(f"{len(late):,} ended, {commits.by_cause()}")
    assert len(late) == len(ends), "some did not end"
    assert min(late) >= 0, "some ended early"
    return late


class Commits:
    """Stands before every way in which an end is stored, and notes PostgreSQL's time after each that ended any."""

    def __init__(self, app: Application) -> None:
        self._clock = psycopg.connect(app.settings.database(), autocommit=True)
        self._late: list[float] = []
        self._causes: Counter[str] = Counter()
        self._append = app.store.append
        self._end_due = app.store.recorder.end_due
        app.store.append = self.append  # type: ignore[method-assign]
        app.store.recorder.end_due = self.end_due  # type: ignore[method-assign]

    @property
    def endings(self) -> int:
        return len(self._late)

    def append(
        self, appends: Sequence[Append[Any]], *arguments: Any, **options: Any
    ) -> list[Appended | Conflict | Busy]:
        outcomes = self._append(appends, *arguments, **options)
        stored = [a.events[-1] for a, each in zip(appends, outcomes, strict=True) if isinstance(each, Appended)]
        ends = [new for new in stored if isinstance(new.event, Ended)]
        self._note([new.event.ended_at for new in ends], f"decided, {ends[0].cause}" if ends else "")
        return outcomes

    def end_due(self, *arguments: Any) -> list[DueStream]:
        page = self._end_due(*arguments)
        self._note([each.due_at for each in page if each.recorded_at is not None], f"prepared, {arguments[3]}")
        return page

    def lateness(self) -> list[float]:
        return self._late

    def by_cause(self) -> dict[str, int]:
        return self._causes

    def _note(self, ends: Sequence[datetime], cause: str) -> None:
        if ends:
            (now,) = self._clock.execute("SELECT coupon_clock.now_utc()", prepare=True).fetchone() or (None,)
            self._late += [(now - end).total_seconds() for end in ends]
            self._causes[cause] += len(ends)


MEASURES = {
    "light": light_load,
    "relay": relay,
    "many": many_at_one_instant,
    "endings": endings,
    "reconciler": idle_reconciler,
    "very-many": very_many_at_one_instant,
}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []], help="by default all")
    options = parser.parse_args()
    tune_interpreter()
    with servers("rocketmq") as running:
        measures = options.measures or MEASURES
        return tell((figure for name in measures for figure in MEASURES[name](running)), options.json)


if __name__ == "__main__":
    sys.exit(main())
