"""Looking for what is due, and claiming alarms, while a snapshot elsewhere keeps all that came and went."""

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from time import perf_counter

import psycopg
from measure import Figure, arguments, at_most, quantile, say, servers, tell

from coupon_clock.app import Application, Settings
from coupon_clock.testing import throw_away_database

GONE = 150_000
LOOKS = 100
AHEAD = timedelta(hours=1)


def main() -> int:
    return tell(figures(), arguments(__doc__).parse_args().json)


def figures() -> list[Figure]:
    with servers("memory") as running, throw_away_database(running.postgres.url) as url:
        settings = Settings.load(database_url=url)
        with Application.open(settings) as app, psycopg.connect(url) as reader:
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            reader.execute("SELECT count(*) FROM coupon_clock.alarm")
            come_and_go(url)
            look, claim = looking(app), claiming(app)
            return [
                at_most(f"overdue look with {GONE:,} gone under a snapshot, median", quantile(look, 0.5), "ms", 2),
                at_most(f"claim with {GONE:,} gone under a snapshot, median", quantile(claim, 0.5), "ms", 10),
                at_most("overdue look from the bottom, worst", max(look), "ms", None),
                at_most("claim from the bottom, worst", max(claim), "ms", None),
            ]


def come_and_go(url: str) -> None:
    """Alarms are inserted, armed as by a claim, and deleted once they are due."""
    say(f"{GONE:,} alarms come and go")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO coupon_clock.alarm (stream_id, due_at) "
            "SELECT gen_random_uuid(), now() - interval '10 s' + n * interval '1 us' FROM generate_series(1, %s) AS n",
            (GONE,),
        )
        connection.execute("UPDATE coupon_clock.alarm SET armed_at = now()")
        connection.execute("DELETE FROM coupon_clock.alarm")


def looking(app: Application) -> Sequence[float]:
    return timed(lambda: app.runtime.deadlines.handle_due([], "reconciler", timedelta(seconds=1)))


def claiming(app: Application) -> Sequence[float]:
    return timed(lambda: app.runtime.deadlines.alarms.claim(AHEAD, 2_000))


def timed(look: Callable[[], object]) -> list[float]:
    """In milliseconds."""
    took = []
    for _ in range(LOOKS):
        started = perf_counter()
        look()
        took.append((perf_counter() - started) * 1e3)
    return took


if __name__ == "__main__":
    sys.exit(main())
