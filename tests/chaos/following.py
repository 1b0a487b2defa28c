"""Two followers of one log, which keep what they were given: one in transactions of its own, one in the follower's."""

from collections.abc import Sequence
from threading import Event, Thread
from typing import Any

import psycopg

from chaos.journal import Journal
from coupon_clock.app import Application, Envelope

FOLLOWED = """
INSERT INTO chaos.followed (log, follower, position, template, version) SELECT %s, %s, * FROM unnest(%s, %s, %s)
"""


def follow(app: Application, url: str, journal: Journal, stop: Event) -> list[Thread]:
    """Both, each in a thread, until `stop`."""
    log = app.settings.database_schema

    def plain(batch: Sequence[Envelope[Any]]) -> None:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            keep(connection, log, "plain", batch)

    def transactional(batch: Sequence[Envelope[Any]], connection: psycopg.Connection[Any]) -> None:
        keep(connection, log, "transactional", batch)

    def run(name: str, handler: Any, given: dict[str, Any]) -> None:
        try:
            app.follow(name, handler, stop=stop, **given)
        except Exception as error:
            journal.note("unexpected", by=f"follower {name}", error=repr(error))

    runs = ("plain", plain, {"batch": 100}), ("transactional", transactional, {"batch": 100, "transactional": True})
    threads = [Thread(target=run, args=each, daemon=True) for each in runs]
    for thread in threads:
        thread.start()
    return threads


def keep(connection: psycopg.Connection[Any], log: str, follower: str, batch: Sequence[Envelope[Any]]) -> None:
    columns = zip(*((each.position, each.stream_id, each.version) for each in batch), strict=True)
    connection.execute(FOLLOWED, (log, follower, *map(list, columns)))
