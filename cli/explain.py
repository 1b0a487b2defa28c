"""`explain`: the life of one template, and what keeps it from ending."""

from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import FOUND_SOMETHING, JsonOption, out, plain, print_json
from coupon_clock.cli.printable import printable
from coupon_clock.maintenance.explain import Explanation, StoredEvent, shown

LONGEST_STATE = 300


def explain(
    stream_id: Annotated[UUID, typer.Argument(metavar="ID", help="Of a coupon template.")], as_json: JsonOption = False
) -> None:
    """Show all events of a template, its alarm, and who has taken them in; say what happens next, or what keeps it from
    ending and what helps. Exit code 1 if something is wrong."""
    with Application.open() as app:
        found = app.maintenance.explain(stream_id)
    if as_json:
        print_json(plain(found))
    else:
        for line in lines(found):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(FOUND_SOMETHING if found.do else 0)


def lines(found: Explanation) -> Iterator[str]:
    yield from map(event_line, found.events)
    if found.unreadable:
        yield f"unreadable  {printable(found.unreadable)}"
    if alarm := found.alarm:
        armed = f"armed at {shown(alarm.armed_at)}" if alarm.armed_at else "not armed"
        prepared = f", {alarm.topic} prepared at version {alarm.version}" if alarm.topic else ""
        yield f"alarm       due at {shown(alarm.due_at)}, {armed}{prepared}"
    for each in found.followed:
        state = "has taken all in" if each.has_all else f"is at {each.position:,}, before its last event"
        stopped = f"; stopped: {printable(each.stopped_by)}" if each.stopped_by else ""
        yield f"{each.kind:<11} {printable(each.name)} {state}{stopped}"
    for projection, version, reason, since in found.quarantined:
        yield f"quarantine  {projection} leaves it alone at version {version} since {shown(since)}: {printable(reason)}"
    for rejected_at, reason in found.rejected:
        yield f"rejected    a message of it at {shown(rejected_at)}: {printable(reason)}"
    yield f"{shown(found.at)}  {printable(found.why)}"
    if found.do:
        yield f"! {found.do}"


def event_line(event: StoredEvent) -> str:
    state = printable(event.state)
    cut = f"{state[:LONGEST_STATE]}…" if len(state) > LONGEST_STATE else state
    by = f" by {printable(event.actor)}" if event.actor else ""
    return (
        f"{shown(event.recorded_at)}  {event.version} at {event.position:,}  {event.topic} ({event.cause}{by})  {cut}"
    )
