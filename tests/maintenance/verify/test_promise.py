"""`check` proves the promise from the log alone: each way of breaking it is found and named."""

from datetime import timedelta
from uuid import uuid4

import pytest

from coupon_clock.domain.events import Ended, EndReason, Event, StockIncreased
from coupon_clock.infrastructure.event_store.store import Append, NewEvent
from coupon_clock.testing import TestApplication
from examples import EVENING, MICROSECOND, NOON, SHOP, a_template, terminate


def append(app: TestApplication, template, version: int, event: Event, at=EVENING, **alarm) -> None:
    """Past every rule, as a foreign writer could."""
    app.clock.set(at)
    app.store.append([Append(template.template_id, version, [NewEvent(event, uuid4())], **alarm)])


@pytest.fixture
def ended(app: TestApplication) -> object:
    """A template that expired at NOON."""
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.clock.set(NOON)
    app.run_due()
    return template


def whats(app: TestApplication) -> list[str]:
    return [violation.what for violation in app.maintenance.verify_promise().violations]


def test_a_whole_log_has_no_violation_and_says_how_late(app, ended):
    other = a_template(valid_until=EVENING)
    app.execute(other)
    app.execute(terminate(other.template_id))

    report = app.maintenance.verify_promise()

    assert not report.found_something
    assert report.ended == {"expired": 1, "terminated": 1}
    assert sum(late.count for late in report.lateness.values()) == 1
    assert all(late.worst == timedelta(0) for late in report.lateness.values())


def test_only_what_changed_since_a_position_is_read_and_the_most_late_are_named(app):
    early, late = a_template(valid_until=NOON - timedelta(hours=1)), a_template()
    app.execute(early)
    end = app.end_of_log()
    app.execute(late)
    app.clock.set(NOON + timedelta(seconds=2))
    app.run_due()

    report = app.maintenance.verify_promise()
    assert [stream_id for _, stream_id in report.most_late] == [early.template_id, late.template_id]
    assert report.most_late[1].by == timedelta(seconds=2)
    assert app.maintenance.verify_promise(since=app.end_of_log()).streams == 0
    assert app.maintenance.verify_promise(since=end).streams == 2
    assert app.maintenance.verify_promise(since=end + 2).streams == 1


def test_an_end_that_comes_twice_is_found(app, ended):
    append(app, ended, 2, Ended(SHOP, EndReason.EXPIRED, NOON))

    assert whats(app) == ["it ended again", "something happened after its end"]


def test_something_after_the_end_is_found_with_its_position(app, ended):
    append(app, ended, 2, StockIncreased(SHOP, 5))

    (violation,) = app.maintenance.verify_promise().violations
    assert (violation.what, violation.position) == ("something happened after its end", 3)


def test_an_early_end_is_found(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    append(app, template, 1, Ended(SHOP, EndReason.EXPIRED, NOON), at=NOON - MICROSECOND, due_at=None)

    assert whats(app) == ["it ended 0:00:00.000001 early"]


def test_another_end_than_the_templates_is_found(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    append(app, template, 1, Ended(SHOP, EndReason.EXPIRED, EVENING), due_at=None)

    assert whats(app) == [f"ended_at is {EVENING}, not {NOON}"]


def test_the_overdue_are_named(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.clock.set(EVENING)

    report = app.maintenance.verify_promise()

    assert report.overdue == [template.template_id]
    assert report.found_something
