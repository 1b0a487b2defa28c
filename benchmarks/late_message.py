"""Twenty shops, each with an end a second, while 50,000 templates of another shop end: one message comes late there.

Once with the other messages of that shop in time, and once without them: then the late one has all these ends stored.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from commits import Commits
from measure import SHOP, Figure, application, at_most, create, quantile, say, sleep_until

from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.messaging.messages import ExpiryDue
from coupon_clock.local_servers.servers import LocalServers

MANY = 50_000
SHOPS = 20
EVERY = timedelta(seconds=0.05)
BEFORE, AFTER = 40, 160
"""Ends of the twenty shops, one every 50 ms, before and after the instant."""
LATE = timedelta(seconds=0.02)
"""Before the next message of the twenty shops: that would have all ends stored, too."""
CREATED_PER_S = 3_000

Publish = Callable[[Sequence[ExpiryDue], timedelta], None]


def late_message(running: LocalServers) -> Iterator[Figure]:
    for others_lost in (False, True):
        yield from light_shops(running.postgres.url, others_lost)


def light_shops(server_url: str, others_lost: bool) -> Iterator[Figure]:
    name = f"one late message among {MANY:,} ends of another shop, its others {'lost' if others_lost else 'in time'}"
    say(name)
    instant = datetime.now(UTC) + timedelta(seconds=5 + MANY / CREATED_PER_S)
    first = instant - BEFORE * EVERY - timedelta(milliseconds=1)
    broker = MemoryBroker()
    with application(server_url) as app:
        commits = Commits(app)
        (late,) = create(app, [instant])
        deliver = keep_back(broker, lambda each: each.due_at == instant if others_lost else each.stream_id == late)
        with app.running(broker=broker):
            of_the_others: list[UUID] = []
            for shop in range(SHOPS):
                ends = [first + n * EVERY for n in range(shop, BEFORE + AFTER, SHOPS)]
                of_the_others += create(app, ends, shop_number=SHOP + 1 + shop)
            of_the_shop = [late, *create(app, [instant] * (MANY - 1))]
            assert datetime.now(UTC) < first, "creating took too long"
            sleep_until(instant + LATE)
            deliver([ExpiryDue(late, instant)], app.settings.lead_time)
            commits.wait_for(MANY + BEFORE + AFTER, first + (BEFORE + AFTER) * EVERY)
        yield at_most(f"{name}: {SHOPS} light shops, p99", quantile(commits.lateness(of_the_others), 0.99), "s", 1)
        yield at_most(f"{name}: its last", max(commits.lateness(of_the_shop)), "s", None)
        yield from commits.figures(name)


def keep_back(broker: MemoryBroker, lost: Callable[[ExpiryDue], bool]) -> Publish:
    """Makes it lose these messages. Returns what still delivers them."""
    publish = broker.publish

    def publish_the_rest(messages: Sequence[ExpiryDue], lead: timedelta) -> None:
        publish([message for message in messages if not lost(message)], lead)

    broker.publish = publish_the_rest  # type: ignore[method-assign]
    return publish
