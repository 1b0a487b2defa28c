"""`verify`: the promise, the rows and the alarms, proved from the log."""

from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import Annotated

import msgspec
import typer
from rich.table import Column, Table

from coupon_clock.app import Application
from coupon_clock.cli.output import FOUND_SOMETHING, MOST_SHOWN, JsonOption, out, print_json
from coupon_clock.cli.rebuild import PROJECTED
from coupon_clock.maintenance.verify.promise import PromiseReport
from coupon_clock.maintenance.verify.rows import Part
from coupon_clock.maintenance.verify.stored_rows import Difference


class What(StrEnum):
    PROMISE = "promise"
    ROWS = "rows"
    ALARMS = "alarms"


def verify(
    what: Annotated[What | None, typer.Argument(help="promise, rows or alarms; by default all three.")] = None,
    name: Annotated[str | None, typer.Argument(help=f"Of rows: {' or '.join(PROJECTED)}; by default all.")] = None,
    sample: Annotated[
        float | None, typer.Option(min=0, max=100, metavar="PERCENT", help="Rows and alarms of a sample only.")
    ] = None,
    since: Annotated[
        int | None, typer.Option(min=0, metavar="POSITION", help="Only what changed after this position.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove from the log, on a running system, that every template ended once, last and not early, and say how late;
    compare rows and alarms with it. Exit code 1 if anything is wrong."""
    if name is not None and what is not What.ROWS:
        raise typer.BadParameter("a name is for rows: coupon-clock verify rows NAME")
    part = Part(since=since, percent=sample)
    found = False
    with Application.open() as app:
        if what in (None, What.PROMISE):
            report = app.maintenance.verify_promise(since)
            print_promise(report, as_json)
            found = report.found_something
        if what is None:
            found |= print_differences(app.maintenance.verify(part), "every row and alarm", as_json)
        elif what is What.ROWS:
            differences = app.maintenance.verify_rows(name, part)
            found = print_differences(differences, name or "every row", as_json)
        elif what is What.ALARMS:
            found = print_differences(app.maintenance.verify_alarms(part), "every alarm", as_json)
    raise typer.Exit(FOUND_SOMETHING if found else 0)


# ── rows and alarms ──────────────────────────────────────────────────────────────────────────────


def print_differences(differences: Iterator[Difference], what: str, as_json: bool) -> bool:
    """Prints the first ones. Returns whether there are any."""
    shown = list(islice(differences, MOST_SHOWN))
    further = sum(1 for _ in differences)
    if as_json:
        for difference in shown:
            print_json(msgspec.to_builtins(difference))
    elif shown:
        repair = ", ".join(f"coupon-clock rebuild {table}" for table in sorted({each.table for each in shown}))
        out.print(differences_table(shown))
        out.print(f"{len(shown) + further:,} differences. Repair them with: {repair}", soft_wrap=True)
    else:
        out.print(f"{what} is what the log says")
    return bool(shown)


def differences_table(differences: list[Difference]) -> Table:
    table = Table("table", Column("id", overflow="fold"), "column", "is", "should be")
    for difference in differences:
        table.add_row(
            difference.table, str(difference.id), difference.column, str(difference.is_value), str(difference.should_be)
        )
    return table


# ── the promise ──────────────────────────────────────────────────────────────────────────────────


def print_promise(report: PromiseReport, as_json: bool) -> None:
    if as_json:
        print_json(report_as_json(report))
        return
    ended = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.ended.items())) or "none ended"
    out.print(f"{report.streams:,} templates: {ended}, {report.overdue_count:,} overdue")
    for cause, late in sorted(report.lateness.items()):
        p50, p99 = late.quantile(0.5), late.quantile(0.99)
        worst = late.worst.total_seconds()
        out.print(f"ended by {cause}: {late.count:,}, late p50 {p50:.4f} s, p99 {p99:.4f} s, worst {worst:.4f} s")
    for by, stream_id in report.most_late:
        out.print(f"most late: {stream_id}, {by.total_seconds():.4f} s", markup=False)
    for violation in report.violations:
        place = f"{violation.stream_id} at position {violation.position}"
        out.print(f"{place}: {violation.what}", markup=False, soft_wrap=True)
    for stream_id in report.overdue:
        out.print(f"{stream_id}: overdue", soft_wrap=True)
    for stream in report.left_out:
        out.print(f"{stream.stream_id}: left out: {stream.reason}", markup=False, soft_wrap=True)
    out.print(f"{report.violation_count:,} violations of the promise")


def report_as_json(report: PromiseReport) -> dict[str, object]:
    lateness = {
        cause: {
            "count": late.count,
            "p50_s": late.quantile(0.5),
            "p99_s": late.quantile(0.99),
            "worst_s": late.worst.total_seconds(),
        }
        for cause, late in report.lateness.items()
    }
    return {
        "templates": report.streams,
        "ended": dict(report.ended),
        "lateness": lateness,
        "most_late": [{"template_id": str(stream_id), "s": by.total_seconds()} for by, stream_id in report.most_late],
        "violation_count": report.violation_count,
        "violations": msgspec.to_builtins(report.violations),
        "overdue_count": report.overdue_count,
        "overdue": [str(stream_id) for stream_id in report.overdue],
        "left_out_count": report.left_out_count,
        "left_out": msgspec.to_builtins(report.left_out),
    }
