"""What faults cost: ends that are left to the reconciler, sockets that are left open.

    python benchmarks/faults.py [--json] [restart] [alone] [unknown] [outage] [await]

restart, alone  consumers are restarted one after the other; the only one is
unknown         40,000 messages of streams that nobody knows come within 10 s of 500 ends
outage          RocketMQ is away for five minutes
await           the event loop of AsyncApplication while the log is locked

Consumers are processes of their own, `coupon-clock run --role consumer`; relay and reconciler run in another. Two
minutes a measure, the outage seven.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from uuid import uuid4

import psutil
import psycopg
from measure import Figure, application, arguments, at_most, create, say, servers, sleep_until, tell, template
from raw_rocketmq import provisioned, send

from coupon_clock.app import Application, Settings
from coupon_clock.async_app import AsyncApplication
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire
from coupon_clock.local_servers.servers import LocalServers

ENDS_A_SECOND = 50
BEFORE_S, EVERY_S, AFTER_S = 25.0, 20.0, 25.0
RESTARTS = 4
LONGEST_STOP_S = 60.0
UNKNOWN, UNKNOWN_S = 40_000, 10.0
OUTAGE_S, SETTLED_S = 300.0, 30.0
LOCKED_S, TIMER_S = 1.5, 0.005

CAUSES = """
SELECT cause, count(*)
  FROM coupon_clock.event
 WHERE topic = 'CouponTemplate.Ended'
   AND (convert_from(state, 'UTF8')::json ->> 'ended_at')::timestamptz BETWEEN %s AND %s
 GROUP BY cause
"""


class Consumer:
    """A process that is started again and again."""

    def __init__(self, app: Application) -> None:
        settings = app.settings
        self._environment = os.environ | {
            "COUPON_CLOCK_DATABASE_URL": settings.database(),
            "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": settings.rocketmq_endpoints,
            "COUPON_CLOCK_ROCKETMQ_TOPIC": settings.rocketmq_topic,
            "COUPON_CLOCK_ROCKETMQ_GROUP": settings.rocketmq_group,
        }
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "coupon_clock.cli", "run", "--role", "consumer"]
        self._process = subprocess.Popen(command, env=self._environment)

    def restart(self) -> float:
        """Returns the seconds that its stop took."""
        began = monotonic()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(LONGEST_STOP_S)
        took = monotonic() - began
        self.start()
        return took

    def sockets(self) -> int:
        """TCP connections, in whatever state."""
        return len(psutil.Process(self._process.pid).net_connections("tcp"))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def restarts(consumers: int, most_left: float | None) -> Callable[[LocalServers], Iterator[Figure]]:
    """`most_left`: per cent of the ends from the first stop until the last new process is at work."""

    def measure(running: LocalServers) -> Iterator[Figure]:
        name = f"{consumers} consumers restarted in turn" if consumers > 1 else "the only consumer restarted"
        say(f"{name}: {RESTARTS} restarts, {ENDS_A_SECOND} ends a second")
        with consuming(running, consumers) as (app, processes):
            began = datetime.now(UTC) + timedelta(seconds=BEFORE_S)
            total_s = RESTARTS * EVERY_S + AFTER_S
            first, count = began - timedelta(seconds=10), int((total_s + 10) * ENDS_A_SECOND)
            create(app, [first + timedelta(seconds=n / ENDS_A_SECOND) for n in range(count)])
            stops = []
            for number in range(RESTARTS):
                sleep_until(began + timedelta(seconds=number * EVERY_S))
                stops.append(processes[number % consumers].restart())
                say(f"stopped in {stops[-1]:.1f} s, and started again")
            until = began + timedelta(seconds=RESTARTS * EVERY_S)
            sleep_until(until + timedelta(seconds=5))
            left, ended = left_to_reconciler(app, began, until)
        yield at_most(f"{name}: ends left to the reconciler", 100 * left / ended, "%", most_left)
        yield at_most(f"{name}: ends meanwhile", ended, "ends", None)
        yield at_most(f"{name}: the longest stop", max(stops), "s", 20)

    return measure


def left_to_reconciler(app: Application, since: datetime, until: datetime) -> tuple[int, int]:
    """How many, and of how many."""
    with psycopg.connect(app.settings.database()) as connection:
        causes = dict(connection.execute(CAUSES, (since, until)).fetchall())
    return causes.get("reconciler", 0), sum(causes.values())


@contextmanager
def consuming(running: LocalServers, consumers: int) -> Iterator[tuple[Application, list[Consumer]]]:
    name = f"restarted-{consumers}"
    endpoints = provisioned(running, name)
    given = {"rocketmq_endpoints": endpoints, "rocketmq_topic": name, "rocketmq_group": name}
    with application(running.postgres.url, **given) as app, ExitStack() as stack:
        processes = [Consumer(app) for _ in range(consumers)]
        for process in processes:
            stack.callback(process.kill)
        with app.running(["relay", "reconciler"]):
            yield app, processes


def unknown_streams(running: LocalServers) -> Iterator[Figure]:
    say(f"{UNKNOWN:,} messages of unknown streams beside {ENDS_A_SECOND} ends a second")
    with consuming(running, 1) as (app, _):
        first = datetime.now(UTC) + timedelta(seconds=BEFORE_S)
        until = first + timedelta(seconds=UNKNOWN_S)
        count = int(UNKNOWN_S * ENDS_A_SECOND)
        create(app, [first + timedelta(seconds=n / ENDS_A_SECOND) for n in range(count)])
        due = [first.timestamp() + n * UNKNOWN_S / UNKNOWN for n in range(UNKNOWN)]
        took = send(app.settings.rocketmq_endpoints, app.settings.rocketmq_topic, due, of_unknown_stream)
        sleep_until(until + timedelta(seconds=5))
        left, ended = left_to_reconciler(app, first, until)
        yield at_most(f"{UNKNOWN:,} messages of unknown streams, sent in", took, "s", None)
        yield at_most("ends left to the reconciler beside them", 100 * left / ended, "%", 0)
        yield at_most("rejected messages that are kept", len(app.maintenance.rejected(UNKNOWN)), "messages", None)


def of_unknown_stream(deliver_at: float) -> bytes:
    return to_wire(ExpiryDue(uuid4(), datetime.fromtimestamp(deliver_at, UTC)))


def outage(running: LocalServers) -> Iterator[Figure]:
    assert running.rocketmq
    with consuming(running, 1) as (_, (consumer,)):
        sleep(SETTLED_S)
        before = consumer.sockets()
        say(f"{before} sockets; RocketMQ is away for {OUTAGE_S:.0f} s")
        running.rocketmq.kill()
        most, until = before, monotonic() + OUTAGE_S
        while monotonic() < until:
            sleep(1)
            most = max(most, consumer.sockets())
        running.rocketmq.start()
        sleep(SETTLED_S)
        after = consumer.sockets()
    yield at_most("sockets of a consumer during the outage, most", most, "sockets", None, before)
    yield at_most("sockets of a consumer after the outage", after, "sockets", before + 2, before)


def event_loop(running: LocalServers) -> Iterator[Figure]:
    """A timer every few milliseconds, while commands and queries wait for a lock."""
    say(f"an event loop while the log is locked for {LOCKED_S:g} s")
    with application(running.postgres.url) as app:
        worst = asyncio.run(most_late(app.settings))
    yield at_most("a timer of an event loop beside commands that wait, most late", 1_000 * worst, "ms", 20)


async def most_late(settings: Settings) -> float:
    async with AsyncApplication.open(settings) as app:
        await app.execute(template(datetime.now(UTC) + timedelta(hours=1)))
        with psycopg.connect(settings.database()) as connection:
            connection.execute("LOCK TABLE coupon_clock.event IN ACCESS EXCLUSIVE MODE")
            later = datetime.now(UTC) + timedelta(hours=1)
            waiting = [asyncio.create_task(app.execute(template(later))) for _ in range(100)]
            waiting += [asyncio.create_task(app.end_of_log()) for _ in range(5)]
            worst, until = 0.0, monotonic() + LOCKED_S
            while monotonic() < until:
                due = monotonic() + TIMER_S
                await asyncio.sleep(TIMER_S)
                worst = max(worst, monotonic() - due)
        await asyncio.gather(*waiting)
    return worst


MEASURES = {
    "restart": restarts(2, most_left=2),
    "alone": restarts(1, most_left=None),
    "unknown": unknown_streams,
    "outage": outage,
    "await": event_loop,
}


def main() -> int:
    options = arguments(__doc__, MEASURES).parse_args()
    names = options.measures or list(MEASURES)
    with servers("memory" if names == ["await"] else "rocketmq") as running:
        measures = [MEASURES[name] for name in names]
        return tell((figure for measure in measures for figure in measure(running)), options.json)


if __name__ == "__main__":
    sys.exit(main())
