"""How punctual ends are, and what it costs: light load, many at one instant, relay, idle reconciler, status.

    python benchmarks/expiry.py [--json] [--million] [light] [relay] [many] [late] [memory] [endings] [reconciler]
                                [very-many] [status]

Lateness is read from PostgreSQL's clock after the append of the end has returned: when it was committed, not decided.
One process runs all loops, with default settings; RocketMQ's own client is measured beside it. A quarter of an hour.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import ceil
from statistics import median

import psycopg
from commits import ended
from endings import endings
from held_messages import held_messages
from late_message import late_message
from measure import (
    Figure,
    application,
    arguments,
    at_least_times,
    at_most,
    create,
    quantile,
    say,
    seconds,
    servers,
    tell,
)
from neighbour import Neighbour
from raw_rocketmq import lateness, provisioned, send

from coupon_clock.app import Application
from coupon_clock.deadlines import broker_for
from coupon_clock.infrastructure.loop import tune_interpreter
from coupon_clock.infrastructure.scheduling.reconciler import Reconciler
from coupon_clock.infrastructure.scheduling.relay import Relay
from coupon_clock.local_servers.servers import LocalServers

LIGHT, LIGHT_EVERY_S = 300, 0.05
MANY, VERY_MANY = 10_000, 100_000
RELAYED, ROUNDS = 4_000, 5
IDLE_ALARMS, IDLE_ROUNDS = 1_000_000, 300
SENT_PER_S = 1_500
"""Slower than the relay is, so that all messages are on their way before the instant."""

IDLE_TABLES = (
    "CREATE TABLE plain AS SELECT gen_random_uuid() AS id, now() + interval '1 day' AS valid_until, false AS ended"
    f" FROM generate_series(1, {IDLE_ALARMS})",
    "CREATE INDEX ON plain (valid_until) WHERE NOT ended",
    "INSERT INTO coupon_clock.alarm SELECT id, valid_until FROM plain",
    "VACUUM ANALYZE coupon_clock.alarm, plain",
)
STATUS_ALARMS, STATUS_TEMPLATES, STATUS_ROUNDS = 10_000_000, 50_000, 5
FILL_ALARMS = f"""
INSERT INTO coupon_clock.alarm (stream_id, due_at)
SELECT gen_random_uuid(), now() + n * interval '8 milliseconds' FROM generate_series(1, {STATUS_ALARMS}) AS n
"""
IDLE_UPDATE = "UPDATE plain SET ended = true WHERE NOT ended AND valid_until <= now()"


# ── what is measured ─────────────────────────────────────────────────────────────────────────────


def light_load(running: LocalServers) -> Iterator[Figure]:
    say(f"light load: {LIGHT} ends, one every {LIGHT_EVERY_S} s")
    with on_rocketmq(running, "light") as app, app.running():
        start = datetime.now(UTC) + timedelta(seconds=15)
        commits = ended(app, [start + timedelta(seconds=n * LIGHT_EVERY_S) for n in range(LIGHT)])
        late, ways = commits.lateness(), list(commits.figures("light load"))
    say("light load, raw client")
    first = ceil(datetime.now(UTC).timestamp()) + 8
    raw = lateness(provisioned(running, "raw-light"), "raw-light", "raw-light", [first + n // 20 for n in range(LIGHT)])
    for share, target in ((0.5, 5), (0.99, 20)):
        ours, theirs = 1_000 * quantile(late, share), 1_000 * quantile(raw, share)
        yield at_most(f"light load, end to committed, p{100 * share:.0f}", ours, "ms", target, theirs)
    yield from ways


def many_at_one_instant(running: LocalServers) -> Iterator[Figure]:
    name = f"{MANY:,} ends at one instant"
    say(name)
    with on_rocketmq(running, "many") as app, app.running():
        commits = ended(app, [instant_for(MANY)] * MANY)
        last, ways = max(commits.lateness()), list(commits.figures(name))
    say(f"{MANY:,} at one instant, raw client")
    instant = ceil(instant_for(MANY).timestamp())
    raw = lateness(provisioned(running, "raw-many"), "raw-many", "raw-many", [instant] * MANY)
    yield at_most(f"{name}, the last committed", last, "s", 0.2, max(raw))
    yield from ways


def very_many_at_one_instant(running: LocalServers) -> Iterator[Figure]:
    name = f"{VERY_MANY:,} ends at one instant"
    say(f"{name}, and a neighbour with 50 commands a second")
    with on_rocketmq(running, "very-many") as app, app.running():
        with Neighbour(app.settings.database()) as neighbour:
            instant = instant_for(VERY_MANY)
            commits = ended(app, [instant] * VERY_MANY)
            last, ways = max(commits.lateness()), list(commits.figures(name))
        waits = neighbour.between(instant, instant + timedelta(seconds=last))
    p99 = 1_000 * quantile(waits, 0.99)
    yield at_most(f"{name}, the last committed", last, "s", 2)
    yield from ways
    yield at_most("command from another process meanwhile, p99", p99, "ms", 100)


def relay_rate(running: LocalServers) -> Iterator[Figure]:
    say(f"relay: {ROUNDS} rounds of {RELAYED:,}, alternating with the raw client")
    endpoints = provisioned(running, "raw-relay")
    in_half_an_hour = ceil(datetime.now(UTC).timestamp()) + 1_800
    ours, raw = [], []
    with on_rocketmq(running, "relay") as app:
        broker = broker_for(app.settings)
        relay = Relay(app.runtime.deadlines.alarms, broker, app.runtime.clock, app.settings.lead_time)
        for _ in range(ROUNDS):
            raw.append(RELAYED / send(endpoints, "raw-relay", [in_half_an_hour] * RELAYED))
            create(app, [datetime.now(UTC) + timedelta(minutes=30)] * RELAYED)
            ours.append(RELAYED / seconds(lambda: until_idle(relay)))
            say(f"relay {ours[-1]:,.0f}/s, raw {raw[-1]:,.0f}/s")
        broker.close()
    yield at_least_times("relay, alarms to stored messages", median(ours), "1/s", median(raw), 0.8)


def until_idle(relay: Relay) -> None:
    while relay.run_once():
        pass


def idle_reconciler(running: LocalServers) -> Iterator[Figure]:
    say(f"idle reconciler over {IDLE_ALARMS:,} alarms")
    with (
        application(running.postgres.url) as app,
        psycopg.connect(app.settings.database(), autocommit=True) as connection,
    ):
        for statement in IDLE_TABLES:
            connection.execute(statement)
        reconciler = Reconciler(app.runtime.deadlines.handle_due, app.runtime.deadlines.alarms, timedelta(seconds=1))
        ours = median(seconds(reconciler.run_once) for _ in range(IDLE_ROUNDS))
        plain = median(seconds(lambda: connection.execute(IDLE_UPDATE)) for _ in range(IDLE_ROUNDS))
    yield at_most(f"idle reconciler over {IDLE_ALARMS:,} alarms, median", 1_000 * ours, "ms", 1, 1_000 * plain)


def status_of_many(running: LocalServers) -> Iterator[Figure]:
    """All of them due within the next day, so that nothing can be counted by its absence."""
    say(f"status over {STATUS_ALARMS:,} alarms")
    with (
        application(running.postgres.url) as app,
        psycopg.connect(app.settings.database(), autocommit=True) as connection,
    ):
        create(app, [datetime.now(UTC) + timedelta(hours=2)] * STATUS_TEMPLATES)
        connection.execute(FILL_ALARMS)
        connection.execute("VACUUM ANALYZE coupon_clock.alarm")
        took = [seconds(app.maintenance.status) for _ in range(STATUS_ROUNDS)]
    yield at_most(f"status over {STATUS_ALARMS:,} alarms, the slowest of {STATUS_ROUNDS}", max(took), "s", 1)


# ── how it is measured ───────────────────────────────────────────────────────────────────────────


@contextmanager
def on_rocketmq(running: LocalServers, name: str) -> Iterator[Application]:
    """On a database, a topic and a group of its own; all other settings are the defaults."""
    endpoints = provisioned(running, name)
    with application(
        running.postgres.url, rocketmq_endpoints=endpoints, rocketmq_topic=name, rocketmq_group=name
    ) as app:
        yield app


def instant_for(count: int) -> datetime:
    """Far enough for so many to be on their way before."""
    return datetime.now(UTC) + timedelta(seconds=12 + count / SENT_PER_S)


def main() -> int:
    parser = arguments(__doc__, MEASURES)
    parser.add_argument("--million", action="store_true", help="endings: also of a million; takes a quarter of an hour")
    options = parser.parse_args()
    tune_interpreter()
    measures = {name: MEASURES[name] for name in options.measures or MEASURES}
    if "endings" in measures:
        measures["endings"] = endings(options.million)
    with servers("memory" if WITHOUT_ROCKETMQ.issuperset(measures) else "rocketmq") as running:
        return tell((figure for measure in measures.values() for figure in measure(running)), options.json)


MEASURES: dict[str, Callable[[LocalServers], Iterator[Figure]]] = {
    "light": light_load,
    "relay": relay_rate,
    "many": many_at_one_instant,
    "late": late_message,
    "memory": held_messages,
    "endings": endings(million=False),
    "reconciler": idle_reconciler,
    "very-many": very_many_at_one_instant,
    "status": status_of_many,
}
WITHOUT_ROCKETMQ = {"late", "endings", "reconciler", "status"}


if __name__ == "__main__":
    sys.exit(main())
