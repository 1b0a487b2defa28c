"""The demo's exit code, for every way in which a promise can be broken."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import uuid4

from msgspec import structs

from coupon_clock.app import Envelope
from coupon_clock.domain.events import Created, Ended, EndReason, Event, ValidityChanged
from examples import EVENING, MICROSECOND, MORNING, NOON, SHOP, TEMPLATE, a_template
from observer import Seen
from verdict import LATEST, Lateness, Report, judge

SOON = timedelta(milliseconds=3)

given = structs.asdict(a_template(template_id=TEMPLATE))
CREATED = Created(**{name: given[name] for name in Created.__struct_fields__})
EXPIRED = Ended(SHOP, EndReason.EXPIRED, ended_at=NOON)


def history(*events: tuple[Event, datetime]) -> list[Envelope[Event]]:
    return [
        Envelope(
            event=event,
            version=version,
            position=version,
            recorded_at=recorded_at,
            command_id=uuid4(),
            actor=None,
            cause="message",
            stream_id=TEMPLATE,
        )
        for version, (event, recorded_at) in enumerate(events, 1)
    ]


def judged(*events: tuple[Event, datetime], committed_at: datetime | None = None) -> Report:
    seen = Seen({TEMPLATE: committed_at}, {TEMPLATE: committed_at + SOON}) if committed_at else Seen()
    return judge({TEMPLATE: history((CREATED, MORNING), *events)}, seen)


def whats(report: Report) -> Sequence[str]:
    return [fault.what for fault in report.faults]


def test_ended_on_time():
    report = judged((EXPIRED, NOON + MICROSECOND), committed_at=NOON + SOON)

    assert report.faults == []
    assert report.exit_code == 0
    assert report.reasons == {"expired": 1}
    assert report.decided == Lateness(MICROSECOND, MICROSECOND, MICROSECOND)
    assert report.committed == Lateness(SOON, SOON, SOON)
    assert report.shown == Lateness(2 * SOON, 2 * SOON, 2 * SOON)


def test_did_not_end():
    report = judged()

    assert whats(report) == ["did not end"]
    assert report.exit_code == 1


def test_nothing_in_the_log_at_all():
    assert judge({TEMPLATE: []}, Seen()).exit_code == 1


def test_ended_twice():
    report = judged((EXPIRED, NOON), (EXPIRED, NOON))

    assert whats(report) == ["ended twice"]
    assert report.exit_code == 1


def test_decided_early():
    report = judged((EXPIRED, NOON - MICROSECOND), committed_at=NOON + SOON)

    assert whats(report) == ["ended early"]
    assert report.faults[0].by == MICROSECOND
    assert report.exit_code == 1


def test_seen_early():
    assert whats(judged((EXPIRED, NOON), committed_at=NOON - MICROSECOND)) == ["ended early"]


def test_ended_at_the_old_end_after_it_was_moved_later():
    moved = ValidityChanged(SHOP, MORNING, EVENING)

    assert whats(judged((moved, MORNING), (EXPIRED, NOON))) == ["ended early"]


def test_ended_at_the_old_end_after_it_was_moved_earlier():
    moved = ValidityChanged(SHOP, MORNING, NOON - timedelta(hours=1))

    assert whats(judged((moved, MORNING), (EXPIRED, NOON))) == ["ended late"]


def test_a_second_late_is_on_time():
    assert judged((EXPIRED, NOON), committed_at=NOON + LATEST).exit_code == 0


def test_committed_more_than_a_second_late():
    report = judged((EXPIRED, NOON), committed_at=NOON + LATEST + MICROSECOND)

    assert whats(report) == ["ended late"]
    assert report.exit_code == 1


def test_decided_more_than_a_second_late_though_nobody_saw_it():
    report = judged((EXPIRED, NOON + LATEST + MICROSECOND))

    assert whats(report) == ["ended late"]
    assert report.exit_code == 1


def test_terminated_counts_from_when_the_shop_did_it():
    terminated = Ended(SHOP, EndReason.TERMINATED, ended_at=MORNING)
    report = judged((terminated, MORNING), committed_at=MORNING + SOON)

    assert report.exit_code == 0
    assert report.reasons == {"terminated": 1}
    assert report.committed is None, "lateness is of those that expired"


def test_one_fault_among_many_is_enough():
    fine = history((CREATED, MORNING), (EXPIRED, NOON))
    report = judge({TEMPLATE: fine, uuid4(): fine[:1]}, Seen())

    assert report.exit_code == 1


def test_percentiles_are_by_nearest_rank():
    values = [timedelta(milliseconds=n) for n in range(200, 0, -1)]

    assert Lateness.of(values) == Lateness(*(timedelta(milliseconds=n) for n in (100, 198, 200)))
    assert Lateness.of([]) is None
