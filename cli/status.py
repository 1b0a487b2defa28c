"""`status`: how the whole stands, read from the database."""

from collections.abc import Iterator
from time import sleep
from typing import Annotated

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import FOUND_SOMETHING, JsonOption, out, plain, print_json
from coupon_clock.cli.printable import printable
from coupon_clock.infrastructure.processes import Process
from coupon_clock.maintenance.findings import Finding
from coupon_clock.maintenance.status import Lag, Status

WATCH_S = 2.0
BARS = " ▁▂▃▄▅▆▇█"


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until Ctrl-C.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what needs a person, for probes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show processes, alarms, what is ahead, followers, messages and lateness. Exit code 1 if something needs a person;
    each such line says what to do."""
    with Application.open() as app:
        while True:
            found = app.maintenance.status()
            needed = app.maintenance.findings(found)
            if watch and not as_json:
                out.clear()
            show(found, needed, quiet, as_json)
            if not watch:
                raise typer.Exit(FOUND_SOMETHING if needed else 0)
            sleep(WATCH_S)


def show(found: Status, needed: list[Finding], quiet: bool, as_json: bool) -> None:
    if as_json:
        as_dict = {"findings": [finding._asdict() for finding in needed]} | plain(found)
        print_json(as_dict)
        return
    for line in () if quiet else lines(found):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for finding in needed:
        out.print(f"! {printable(finding.what)}. {finding.do}", markup=False, highlight=False, soft_wrap=True)
    if not (quiet or needed):
        out.print("nothing needs a person")


def lines(found: Status) -> Iterator[str]:
    yield from processes(found.processes)
    yield from alarms(found)
    yield from map(lag, found.lags)
    for window in found.lateness:
        if window.ended:
            yield (
                f"lateness    last {window.window}: {window.ended:,} ended, p50 {1000 * window.p50:,.1f} ms, "
                f"p99 {1000 * window.p99:,.1f} ms, worst {1000 * window.worst:,.1f} ms, "
                f"{window.by_reconciler:.1%} by the reconciler"
            )
    for projection, streams in found.quarantined.items():
        yield f"quarantine  {streams:,} streams of {projection}"
    for rejected in found.rejected:
        yield f"rejected    {rejected.messages:,}: {printable(rejected.reason)}"
    yield f"server      migration {found.server.migration}, {found.server.dead_alarms:,} dead rows of alarms"


def processes(found: list[Process]) -> Iterator[str]:
    for process in found:
        state = f"dead since {process.heartbeat_at:%Y-%m-%dT%H:%M:%SZ}" if process.is_dead else "running"
        hung = f", hangs: {', '.join(process.hung)}" if process.hung else ""
        yield (
            f"process     {process.pid} on {process.host}: {', '.join(process.roles)}; {state}{hung}, "
            f"since {process.started_at:%Y-%m-%dT%H:%M:%SZ}, version {process.version}"
        )


def alarms(found: Status) -> Iterator[str]:
    alarms, ahead = found.alarms, found.ahead
    yield (
        f"alarms      about {alarms.about:,}; due in a minute {alarms.in_a_minute:,}, an hour {alarms.in_an_hour:,}, "
        f"a day {alarms.in_a_day:,}; {alarms.unarmed:,} to be armed, {alarms.overdue:,} overdue"
    )
    if any(ahead.minutes):
        yield f"next hour   {sparkline(ahead.minutes)}"
    if ahead.peak:
        minute = "this minute" if not ahead.peak_in else f"in {ahead.peak_in:,} minutes"
        yield f"peak        {ahead.peak:,} {minute}: {ahead.drained_in_s:g} s for one process"


def sparkline(counts: list[int]) -> str:
    """A bar a minute."""
    highest = max(counts)
    return "".join(BARS[-(-count * (len(BARS) - 1) // highest)] for count in counts)


def lag(found: Lag) -> str:
    follower = found.follower
    behind = "at the end" if not follower.behind else f"{follower.behind:,} events behind"
    since = f" since {follower.behind_s:,.1f} s" if follower.behind and follower.behind_s is not None else ""
    rate = f", {found.rate:,.0f}/s" if found.rate else ""
    left = f", {found.left_s:,.0f} s left" if found.left_s is not None else ""
    by = f"; held by {follower.held_by}" if follower.held_by else ""
    stopped = f"; stopped: {printable(follower.stopped_by or 'beyond the log')}" if follower.is_stopped else ""
    return f"{follower.kind:<11} {printable(follower.name)}: {behind}{since}{rate}{left}{by}{stopped}"
