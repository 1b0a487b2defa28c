"""One walk past all that the product does with PostgreSQL, on a manual clock, and what it came to."""

from datetime import timedelta
from io import BytesIO
from pprint import pformat
from threading import Event, Thread
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from msgspec.structs import replace
from psycopg import Connection

from coupon_clock.app import Envelope, Filters
from coupon_clock.importing.files import Format
from coupon_clock.importing.importer import import_records, records_of
from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.maintenance.doctor import examine
from coupon_clock.projections.rebuild.rebuild import RebuildOptions
from coupon_clock.projections.registry import PROJECTIONS
from coupon_clock.testing import TestApplication
from examples import EVENING, MORNING, NOON, OTHER_SHOP, SHOP, a_template, change, increase, terminate
from waiting import eventually

FIRST, MOVED, STOPPED, SHARED, OTHERS, IMPORTED = (UUID(int=number) for number in range(1, 7))
HARD_TO_STORE = "春节 \\ \\' '; \"%s\" {schema} 0x5c \u00e9"
IN_CHUNKS = RebuildOptions(events_a_chunk=3, jobs=1)
FILTERS = (
    Filters(),
    Filters(name_contains=HARD_TO_STORE),
    Filters(state="over", discount="ThresholdAmount", target="all_products"),
    Filters(ends_before=EVENING, ends_after=MORNING, ended=True),
)
UNREADABLE_MESSAGE = b"\x00\xff\\"


def walk(app: TestApplication) -> list[str]:
    """Begins in the MORNING, in an empty database. What differs from run to run by itself is left out.

    Returns lines, because times are equal in any zone, and all should be in UTC.
    """
    came_to = [commands(app), loops(app), followed(app), queries(app), maintenance(app), doctor(app), queries(app)]
    return pformat(came_to, width=120).splitlines()


def commands(app: TestApplication) -> list[Any]:
    """One by one, many together, from a file, and in the caller's transaction, by each of the ways to append."""
    outcomes: list[Any] = [app.execute(a_template(template_id=FIRST, command_id=FIRST, name=HARD_TO_STORE))]
    outcomes += app.execute_many(
        [
            a_template(template_id=MOVED, command_id=MOVED),
            increase(MOVED, command_id=UUID(int=101)),
            a_template(template_id=STOPPED, command_id=STOPPED, valid_until=EVENING),
            a_template(template_id=OTHERS, command_id=OTHERS, shop_number=OTHER_SHOP),
            increase(UUID(int=99), command_id=UUID(int=102)),
        ]
    )
    outcomes.append(app.execute(change(MOVED, EVENING, command_id=UUID(int=103))))
    outcomes.append(app.execute(increase(FIRST, by=7, command_id=UUID(int=104), actor="O'Brien \\ 张")))
    outcomes.append(app.execute(terminate(STOPPED, command_id=UUID(int=105))))
    with psycopg.connect(app.settings.database()) as connection:
        outcomes += in_own_transaction(app, connection)
    template = a_template(template_id=IMPORTED, command_id=IMPORTED, name=HARD_TO_STORE)
    outcomes.append([app.is_usable(SHOP, template) for template in (FIRST, MOVED, STOPPED, SHARED)])
    outcomes += import_records(app, records_of(BytesIO(msgspec.json.encode(template)), Format.JSON))
    return [str(outcome) for outcome in outcomes]


def in_own_transaction(app: TestApplication, connection: Connection[Any]) -> list[Any]:
    created = app.execute(a_template(template_id=SHARED, command_id=SHARED), connection=connection)
    increased = app.execute(increase(SHARED, command_id=UUID(int=106)), connection=connection)
    connection.commit()
    app.execute(terminate(SHARED, command_id=UUID(int=107)), connection=connection)
    connection.rollback()
    return [created, increased]


def loops(app: TestApplication) -> list[object]:
    """Up to noon, when some end by what was prepared, and to the evening."""
    done: list[object] = [app.run_due(), app.maintenance.rearm()]
    app.runtime.deadlines.rejected.add([(Delivery("id", UNREADABLE_MESSAGE, "receipt"), "it is not JSON")])
    for now in NOON, EVENING:
        app.clock.set(now - timedelta(microseconds=1))
        app.run_due()
        app.clock.set(now)
        done.append(app.run_due())
    return done


def followed(app: TestApplication) -> list[Any]:
    seen: list[Envelope[Any]] = []
    stop = Event()
    thread = Thread(target=app.follow, args=("walk", seen.extend), kwargs={"batch": 4, "stop": stop}, daemon=True)
    thread.start()
    try:
        eventually(lambda: seen and seen[-1].position == app.end_of_log())
    finally:
        stop.set()
        thread.join(timeout=30)
    return list(map(repeatable, seen))


def queries(app: TestApplication) -> list[Any]:
    of_shop = [FIRST, MOVED, STOPPED, SHARED, IMPORTED]
    end = app.end_of_log()
    return [
        end,
        [app.find(SHOP, template, at_least=end) for template in of_shop],
        [app.is_usable(SHOP, template, at=NOON) for template in of_shop],
        [app.is_usable(SHOP, template) for template in of_shop],
        [list(map(repeatable, app.history(SHOP, template))) for template in of_shop],
        [app.page(SHOP, filters, limit=2) for filters in FILTERS],
        app.page(SHOP, after=MOVED),
        app.page(OTHER_SHOP),
        app.shop_months(SHOP),
    ]


def maintenance(app: TestApplication) -> list[object]:
    run = app.maintenance
    done: list[object] = []
    for projection in PROJECTIONS:
        rebuilt = run.rebuild(projection.name, IN_CHUNKS)
        done += [run.dry_run(projection.name).events, rebuilt.events, rebuilt.position]
    with app.database.connection() as connection:
        connection.execute(b"INSERT INTO coupon_clock.alarm (stream_id, due_at) VALUES (%s, %s)", (UUID(int=98), NOON))
        connection.execute(b"UPDATE coupon_clock.coupon_template SET stock = 3 WHERE template_id = %s", (FIRST,))
    done += [list(run.verify()), run.repair_alarms(), run.rebuild(options=IN_CHUNKS).position, list(run.verify())]
    done += [run.verify_promise(), run.rearm(), [message.body for message in run.rejected()], run.drop_rejected()]
    return done


def doctor(app: TestApplication) -> list[object]:
    """But for what it says of the clock, which is not this host's."""
    return [diagnosis for diagnosis in examine(app.settings) if diagnosis.part != "clock"]


def repeatable(envelope: Envelope[Any]) -> Envelope[Any]:
    """Without the id that PostgreSQL makes for the command of an ending."""
    return envelope if envelope.cause == "command" else replace(envelope, command_id=None)
