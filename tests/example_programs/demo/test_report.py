"""The demo's verdict, for every way in which a promise can be broken, and its last lines."""

from datetime import timedelta
from io import StringIO
from uuid import UUID

from rich.console import Console, Group

from actions import Template
from coupon_clock import PromiseReport, Violation
from examples import MICROSECOND, MORNING, NOON, SHOP, TEMPLATE, a_template, terminate
from observer import Seen
from report import LATEST, broken_promises, percentiles, summary

SOON = timedelta(milliseconds=3)
AS_PLANNED = Template(SHOP, "Spring sale", NOON, template_id=TEMPLATE)
NAMED = f"Spring sale ({TEMPLATE})"


def broken(after: timedelta | None, check: PromiseReport | None = None) -> list[str]:
    """`after`: how long after its end the template was seen to have ended, None where it was not."""
    seen = Seen() if after is None else Seen({TEMPLATE: NOON + after})
    return list(broken_promises(check or PromiseReport(), [AS_PLANNED], seen))


def test_ended_on_time():
    assert broken(SOON) == []
    assert broken(timedelta(0)) == []
    assert broken(LATEST) == [], "a second late is on time"


def test_did_not_end():
    assert broken(None) == [f"{NAMED} did not end"]


def test_overdue_as_the_check_has_it():
    assert broken(SOON, PromiseReport(overdue=[TEMPLATE])) == [f"{NAMED} did not end"]


def test_seen_early():
    assert broken(timedelta(milliseconds=-2)) == [f"{NAMED} ended early by 2.0 ms"]
    assert len(broken(-MICROSECOND)) == 1


def test_seen_more_than_a_second_late():
    assert broken(timedelta(seconds=2)) == [f"{NAMED} ended late by 2,000 ms"]
    assert len(broken(LATEST + MICROSECOND)) == 1


def test_whatever_the_check_finds_is_broken():
    check = PromiseReport(
        violations=[Violation(TEMPLATE, 7, "it ended again"), Violation(UUID(int=1), 8, "it ended early")]
    )

    assert broken(SOON, check) == [f"{NAMED} it ended again", f"unknown ({UUID(int=1)}) it ended early"]


def test_one_fault_among_many_is_enough():
    other = Template(SHOP, "Other", NOON)

    assert list(broken_promises(PromiseReport(), [AS_PLANNED, other], Seen({TEMPLATE: NOON})))


def test_percentiles_are_by_nearest_rank():
    values = [timedelta(milliseconds=n) for n in range(200, 0, -1)]

    assert percentiles(values) == ["100.0 ms", "198.0 ms", "200.0 ms"]
    assert percentiles([]) == ["–", "–", "–"]


def said(app, templates, seen, broken=()) -> str:
    console = Console(file=StringIO(), width=100)
    console.print(Group(*summary(app, templates, seen, 1.25, broken)))
    return console.file.getvalue()


def test_the_summary_says_what_ended_why_and_how_late(app):
    expired, stopped = Template(SHOP, "Expired", NOON), Template(SHOP, "Stopped", MORNING)
    for template in (expired, stopped):
        app.execute(a_template(template_id=template.template_id))
    app.execute(terminate(stopped.template_id))
    app.clock.set(NOON + MICROSECOND)
    app.run_due()
    seen = Seen({expired.template_id: NOON + SOON, stopped.template_id: NOON}, {expired.template_id: NOON + 2 * SOON})

    lines = [line.split() for line in said(app, [expired, stopped], seen).splitlines()]

    assert ["Ended:", "1", "expired,", "1", "terminated;", "caused", "by", "1", "message,", "1", "command."] in lines
    assert ["decided", "0.0", "ms", "0.0", "ms", "0.0", "ms", "recorded_at", "of", "Ended"] in lines
    assert ["committed", "3.0", "ms", "3.0", "ms", "3.0", "ms", "Ended", "seen", "in", "the", "log"] in lines
    assert [
        "in",
        "the",
        "read",
        "model",
        "6.0",
        "ms",
        "6.0",
        "ms",
        "6.0",
        "ms",
        "its",
        "row",
        "seen",
        "as",
        "ended",
    ] in lines
    assert [
        "✓",
        "Every",
        "template",
        "ended",
        "exactly",
        "once,",
        "none",
        "early,",
        "none",
        "more",
        "than",
        "a",
        "second",
        "late.",
    ] in lines


def test_the_summary_names_what_was_broken(app):
    text = said(app, [], Seen(), ["Spring sale did not end"])

    assert "Ended: nothing; caused by nothing." in text
    assert "✕ Spring sale did not end" in text
    assert "✓" not in text
