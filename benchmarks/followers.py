"""What two followers of the log miss, while writers of all kinds pause, roll back and die inside their transactions."""

import random
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Thread
from time import sleep
from uuid import uuid4

import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder
from measure import Figure, application, at_most, say
from writers import DUE_AT, STATE, datastore, one_event

from coupon_clock.app import Application
from coupon_clock.domain.events import Event as DomainEvent
from coupon_clock.infrastructure.event_store.log_reader import LogReader
from coupon_clock.infrastructure.event_store.store import EventStore

ROUNDS = 20
ROUND_S = 1.0

HOLD = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 1, 't', 's')"


def missed(server_url: str) -> Iterator[Figure]:
    """By two followers in one process, over all rounds."""
    count = 0
    with application(server_url) as app:
        for number in range(ROUNDS):
            say(f"adversarial round {number + 1} of {ROUNDS}")
            count += missed_in_a_round(app, random.Random(number))
    yield at_most("missed by two followers", count, "events", 0)


def missed_in_a_round(app: Application, chance: random.Random) -> int:
    url = app.settings.database()
    stop, written = Event(), Event()
    start = highest(url)
    wild = [
        lambda: append_ours(app.store, stop),
        lambda: append_ours(app.store, stop),
        lambda: hold(url, stop, random.Random(chance.random()), "COMMIT"),
        lambda: hold(url, stop, random.Random(chance.random()), "COMMIT"),
        lambda: hold(url, stop, random.Random(chance.random()), "ROLLBACK"),
        lambda: hold(url, stop, random.Random(chance.random()), "SELECT pg_terminate_backend(pg_backend_pid())"),
        lambda: insert_foreign(url, stop),
    ]
    read: list[list[int]] = [[], []]
    threads = [Thread(target=write) for write in wild]
    followers = [Thread(target=follow, args=(app, start, written, positions)) for positions in read]
    for thread in (*followers, *threads):
        thread.start()
    sleep(ROUND_S)
    stop.set()
    for thread in threads:
        thread.join()
    written.set()
    for thread in followers:
        thread.join()
    stored = stored_after(url, start)
    return sum(len(set(stored) - set(positions)) for positions in read)


def append_ours(store: EventStore[DomainEvent], stop: Event) -> None:
    while not stop.is_set():
        store.append([one_event(DUE_AT) for _ in range(3)])


def hold(url: str, stop: Event, chance: random.Random, end: str) -> None:
    """Inserts, pauses inside the transaction, and ends it in that way."""
    while not stop.is_set():
        with suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
            connection.execute("BEGIN")
            connection.execute(HOLD, (uuid4(),))
            sleep(chance.random() * 0.05)
            connection.execute(end)


def insert_foreign(url: str, stop: Event) -> None:
    with datastore(url, lock_free=True, schema="coupon_clock") as store:
        recorder = PostgresApplicationRecorder(store, events_table_name="event")
        recorder.create_table()
        while not stop.is_set():
            recorder.insert_events([StoredEvent(uuid4(), 1, "topic", STATE)])


def follow(app: Application, start: int, written: Event, positions: list[int]) -> None:
    reader = LogReader(app.store.recorder, start)
    while True:
        at_the_end = written.is_set()
        page = reader.page(500)
        positions += [event.position for event in page.events]
        if not page.events and page.blocked_for is None and at_the_end:
            return


def highest(url: str) -> int:
    return max(stored_after(url, 0), default=0)


def stored_after(url: str, position: int) -> list[int]:
    with psycopg.connect(url, autocommit=True) as connection:
        statement = "SELECT notification_id FROM coupon_clock.event WHERE notification_id > %s"
        return [number for (number,) in connection.execute(statement, (position,))]
