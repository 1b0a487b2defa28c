"""The reconciler ends what is overdue, with no broker and no read model, and one bad stream never hides the rest."""

from datetime import timedelta
from uuid import uuid4

import psycopg

from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.scheduling.reconciler import Reconciler
from coupon_clock.testing import TestApplication
from examples import MORNING, NOON, SHOP, a_template

GRACE = timedelta(seconds=1)


def reconciler(app: TestApplication) -> Reconciler:
    return Reconciler(app.runtime.deadlines.handle_due, app.runtime.deadlines.alarms, GRACE)


def is_ended(app: TestApplication, template) -> bool:
    return isinstance(app.history(SHOP, template.template_id)[-1].event, Ended)


def test_it_ends_what_is_past_due_by_the_grace_and_nothing_else(app):
    first, second = a_template(valid_until=NOON), a_template(valid_until=NOON + timedelta(seconds=1))
    app.execute_many([first, second])

    app.clock.set(NOON + timedelta(seconds=0.9))
    assert not reconciler(app).run_once()
    app.clock.set(NOON + timedelta(seconds=1))
    assert reconciler(app).run_once() == {"ended": 1}
    assert (is_ended(app, first), is_ended(app, second)) == (True, False)


def test_alarms_without_a_readable_stream_do_not_hide_the_rest(app, database_url):
    templates = [a_template(valid_until=NOON + timedelta(seconds=n)) for n in range(5)]
    app.execute_many(templates)
    with psycopg.connect(database_url) as connection:
        bad = uuid4()
        connection.execute(
            "INSERT INTO coupon_clock.alarm SELECT gen_random_uuid(), %s FROM generate_series(1, 1500)", (MORNING,)
        )
        connection.execute("INSERT INTO coupon_clock.alarm VALUES (%s, %s)", (bad, NOON))
        connection.execute(
            "INSERT INTO coupon_clock.event VALUES (%s, 1, 'Of.Tomorrow', %s)", (bad, b'{"event":{"type":"?"}}')
        )
    app.clock.set(NOON + timedelta(minutes=1))

    counts = reconciler(app).run_once()
    assert counts["ended"] == 5
    assert all(is_ended(app, template) for template in templates)
