"""Eight threads create templates, while a caller's transaction holds one template that other threads command too.

The reference is the same without that transaction; in turns, on one database.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from statistics import median
from threading import Event, Thread
from uuid import UUID, uuid4

import psycopg
from measure import SHOP, Figure, application, at_least_times, at_most_times, quantile, say, template
from threads import Calls, repeat

from coupon_clock.app import Application, IncreaseStock
from coupon_clock.domain.errors import CouponClockError

CREATING, COMMANDING = 8, 4
PAUSE_S = 0.05
"""Between two commands of a thread on the one template, so that these take no share of the machine while it is free."""
TURNS = 5
TURN_S = 3.0
FAR = datetime(2100, 1, 1, tzinfo=UTC)


def beside_a_held_template(server_url: str) -> Iterator[Figure]:
    without: list[Calls] = []
    beside: list[Calls] = []
    with application(server_url) as app:
        target = app.execute(template(FAR)).template_id
        repeat(lambda: app.execute(template(FAR)), CREATING, TURN_S)
        for turn in range(TURNS):
            say(f"{CREATING} creating threads, turn {turn + 1} of {TURNS}: without, and beside a template that is held")
            with commanding(app, target):
                without.append(repeat(lambda: app.execute(template(FAR)), CREATING, TURN_S))
            with holding(app, target), commanding(app, target):
                beside.append(repeat(lambda: app.execute(template(FAR)), CREATING, TURN_S))
    rate, reference = (median(calls.rate for calls in several) for several in (beside, without))
    yield at_least_times("creates while a caller holds one template", rate, "1/s", reference, 0.9)
    p99, reference = (1_000 * median(quantile(calls.took, 0.99) for calls in several) for several in (beside, without))
    yield at_most_times("creates while a caller holds one template, p99", p99, "ms", reference, 2)


@contextmanager
def holding(app: Application, template_id: UUID) -> Iterator[None]:
    """In a transaction that has commanded it, and stays open."""
    with psycopg.connect(app.settings.database()) as connection:
        app.execute(increase(template_id), connection)
        yield


@contextmanager
def commanding(app: Application, template_id: UUID) -> Iterator[None]:
    """By several threads. Where it is held, each of their commands waits for as long as commands do, and is refused."""
    stop = Event()

    def run() -> None:
        while not stop.wait(PAUSE_S):
            with suppress(CouponClockError):
                app.execute(increase(template_id))

    threads = [Thread(target=run) for _ in range(COMMANDING)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def increase(template_id: UUID) -> IncreaseStock:
    return IncreaseStock(command_id=uuid4(), template_id=template_id, shop_number=SHOP, by=1)
