"""What is measured of each edition, through what both have: commands, loops, and the tables that PostgreSQL shows.

It runs in the environment of that edition, so it imports only what has the same name in all of them. Prints one JSON
object a figure: name, value, unit.
"""

import json
import random
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from threading import Event, Thread
from time import monotonic, perf_counter, sleep
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg

from coupon_clock.app import (
    Application,
    ChangeValidity,
    ConsumeRule,
    CreateCouponTemplate,
    IncreaseStock,
    ReceiveRule,
    Settings,
    TerminateCouponTemplate,
    ThresholdAmount,
)
from coupon_clock.testing import throw_away_database

THREADS = (1, 4, 16)
TURNS, TURN_S, WARM_UP_S = 3, 2.0, 0.5
BULK, WARM_UP_BULK = 40_000, 3_000
ENDS = 100_000
CREATED_PER_S = 3_000
"""Fewer than are created in a second, so that all are there, and their messages held, before the instant."""
TEMPLATES = 50_000
"""In the log that is rebuilt and verified, with four events each."""
CHUNK = 5_000
POLL_S, PATIENCE_S = 0.02, 120.0
SHOP = 1
FAR = datetime(2100, 1, 1, tzinfo=UTC)

Value = tuple[str, float, str]
"""Name, value, unit."""


class Edition(NamedTuple):
    """What has another name in each. `tune_interpreter`: for a process of nothing but loops. `rebuild` returns seconds,
    `verify_rows` how many differences there are."""

    log_to_stderr: Callable[[], None]
    tune_interpreter: Callable[[], None]
    event_table: str
    alarm_table: str
    rebuild: Callable[[Application], float]
    verify_rows: Callable[[Application], int]


class Run(NamedTuple):
    edition: Edition
    server_url: str
    size: float

    @contextmanager
    def application(self, **settings: Any) -> Iterator[Application]:
        with (
            throw_away_database(self.server_url) as url,
            Application.open(Settings.load(database_url=url, **settings)) as app,
        ):
            yield app

    def sized(self, number: int) -> int:
        return max(1, round(number * self.size))


def main(edition: Edition) -> None:
    edition.log_to_stderr()
    parser = ArgumentParser()
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--server-url", required=True)
    parser.add_argument("--size", type=float, default=1.0)
    given = parser.parse_args()
    for name, value, unit in MEASURES[given.measure](Run(edition, given.server_url, given.size)):
        print(json.dumps({"name": name, "value": value, "unit": unit}), flush=True)


# ── what is measured ─────────────────────────────────────────────────────────────────────────────


def execute(run: Run) -> Iterator[Value]:
    rates: dict[int, list[float]] = {threads: [] for threads in THREADS}
    with run.application(database_connections=20) as app:
        for threads in THREADS:
            rate(app, threads, WARM_UP_S * run.size)
        for _ in range(TURNS):
            for threads, several in rates.items():
                several.append(rate(app, threads, TURN_S * run.size))
    for threads, several in rates.items():
        yield f"execute of a new template, {threads} thread{'s' * (threads > 1)}", median(several), "1/s"


def execute_many(run: Run) -> Iterator[Value]:
    with run.application() as app:
        app.execute_many([template(FAR) for _ in range(run.sized(WARM_UP_BULK))])
        commands = [template(FAR) for _ in range(run.sized(BULK))]
        started = perf_counter()
        outcomes = app.execute_many(commands)
        seconds = perf_counter() - started
        refuse_errors(outcomes)
    yield "execute_many of new templates", len(commands) / seconds, "templates/s"


def ends(run: Run) -> Iterator[Value]:
    """By the loops of one process, on the in-process broker, all messages held before the instant."""
    run.edition.tune_interpreter()
    count = run.sized(ENDS)
    instant = datetime.now(UTC) + timedelta(seconds=10 + count / CREATED_PER_S)
    with run.application() as app, app.running():
        for start in range(0, count, CHUNK):
            refuse_errors(app.execute_many([template(instant) for _ in range(min(CHUNK, count - start))]))
        ahead = instant - datetime.now(UTC)
        assert ahead > timedelta(seconds=5), "creating took too long"
        sleep(ahead.total_seconds())
        seconds = (all_ended_at(run.edition, app, count) - instant).total_seconds()
    yield "ends at one instant, until the last is stored", count / seconds, "ends/s"


def rows(run: Run) -> Iterator[Value]:
    templates = run.sized(TEMPLATES)
    with run.application() as app:
        fill(app, templates)
        run.edition.rebuild(app)
        yield "rebuild", 4 * templates / run.edition.rebuild(app), "events/s"
        started = perf_counter()
        differences = run.edition.verify_rows(app)
        seconds = perf_counter() - started
        assert differences == 0, f"{differences} differences"
        yield "verify rows", templates / seconds, "rows/s"


MEASURES: dict[str, Callable[[Run], Iterator[Value]]] = {
    "execute": execute,
    "execute_many": execute_many,
    "ends": ends,
    "rows": rows,
}


# ── how it is measured ───────────────────────────────────────────────────────────────────────────


def rate(app: Application, threads: int, seconds: float) -> float:
    """Executes a second, of all threads together."""
    stop = Event()
    executed = [0] * threads

    def run(number: int) -> None:
        while not stop.is_set():
            app.execute(template(FAR))
            executed[number] += 1

    running = [Thread(target=run, args=(number,)) for number in range(threads)]
    started = perf_counter()
    for thread in running:
        thread.start()
    sleep(seconds)
    stop.set()
    for thread in running:
        thread.join()
    return sum(executed) / (perf_counter() - started)


def all_ended_at(edition: Edition, app: Application, count: int) -> datetime:
    """PostgreSQL's time at which no alarm was left."""
    last = f"SELECT due_at FROM {edition.alarm_table} ORDER BY due_at DESC LIMIT 1"
    ended = f"SELECT count(*) FROM {edition.event_table} WHERE topic = 'CouponTemplate.Ended'"
    give_up_at = monotonic() + PATIENCE_S
    with psycopg.connect(app.settings.database(), autocommit=True) as connection:
        while connection.execute(last, prepare=True).fetchone():
            assert monotonic() < give_up_at, "some did not end"
            sleep(POLL_S)
        now: datetime
        (now,) = connection.execute("SELECT clock_timestamp()").fetchone() or (FAR,)
        assert connection.execute(ended).fetchone() == (count,)
        return now


def fill(app: Application, templates: int) -> None:
    """Four events each. All templates do the first step, then all the next: so the events of a stream lie apart."""
    created = [template(FAR) for _ in range(templates)]
    ids = [command.template_id for command in created]
    steps: list[Sequence[Any]] = [created, *([change(each) for each in ids] for change in (increase, move, terminate))]
    for step in steps:
        for start in range(0, templates, CHUNK):
            refuse_errors(app.execute_many(step[start : start + CHUNK]))


def refuse_errors(outcomes: Sequence[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def template(valid_until: datetime) -> CreateCouponTemplate:
    return CreateCouponTemplate(
        command_id=uuid4(),
        template_id=time_ordered_id(),
        shop_number=SHOP,
        name="Spring sale",
        source="shop",
        target="all_products",
        discount=ThresholdAmount(minimum_spend=1_000, amount_off=300),
        receive_rule=ReceiveRule(limit_per_person=10),
        consume_rule=ConsumeRule(hours_after_claim=48),
        valid_from=datetime.now(UTC),
        valid_until=valid_until,
        stock=100,
    )


def increase(template_id: UUID) -> IncreaseStock:
    return IncreaseStock(command_id=uuid4(), template_id=template_id, shop_number=SHOP, by=50)


def move(template_id: UUID) -> ChangeValidity:
    until = FAR + timedelta(days=1)
    return ChangeValidity(
        command_id=uuid4(), template_id=template_id, shop_number=SHOP, valid_from=datetime.now(UTC), valid_until=until
    )


def terminate(template_id: UUID) -> TerminateCouponTemplate:
    return TerminateCouponTemplate(command_id=uuid4(), template_id=template_id, shop_number=SHOP)


def time_ordered_id() -> UUID:
    """Of version 7, as both editions make them."""
    milliseconds = int(datetime.now(UTC).timestamp() * 1_000)
    number = milliseconds << 80 | 0x7 << 76 | random.getrandbits(12) << 64 | 0b10 << 62 | random.getrandbits(62)
    return UUID(int=number)


if __name__ == "__main__":
    sys.exit("Run first.py or second.py, in the environment of that edition.")
