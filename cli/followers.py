"""`followers`: what follows the log, how far it is, and what to do where it stopped."""

import getpass
from typing import Annotated, Literal

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import FOUND_SOMETHING, JsonOption, out, print_json
from coupon_clock.cli.printable import printable
from coupon_clock.maintenance.followers import Follower

commands = typer.Typer(help="What follows the log, and what to do where it stopped.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The name given to `app.follow`.")]


@commands.command("list")
def list_followers(as_json: JsonOption = False) -> None:
    """Show projections and followers, and how far they are. Exit code 1 if one is stopped."""
    with Application.open() as app:
        found = app.maintenance.followers()
    for follower in found:
        if as_json:
            print_json(follower._asdict())
        else:
            out.print(described(follower), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(FOUND_SOMETHING if any(follower.is_stopped for follower in found) else 0)


def described(follower: Follower) -> str:
    """One line, and another for each thing that is worth one."""
    behind = f", {follower.behind:,} behind since {follower.behind_s:,.0f} s" if follower.behind_s is not None else ""
    lines = [f"{printable(follower.name)}  {follower.kind} at {follower.position:,}{behind}"]
    if follower.held_by:
        lines.append(f"    held by {follower.held_by} since {follower.held_since:%Y-%m-%dT%H:%M:%SZ}")
    if follower.working_since:
        lines.append(f"    has had one batch in work since {follower.working_since:%Y-%m-%dT%H:%M:%SZ}")
    if follower.beyond_log:
        lines.append("    stopped: it is beyond the end of the log, which was restored to an earlier time")
    elif follower.stopped_by:
        lines.append(f"    stopped since {follower.stopped_at:%Y-%m-%dT%H:%M:%SZ}: {printable(follower.stopped_by)}")
    if follower.skipped:
        lines.append(f"    {follower.skipped:,} events skipped: coupon-clock followers skipped {follower.name}")
    return "\n".join(lines)


@commands.command()
def skip(
    name: NameArgument,
    position: Annotated[int, typer.Argument(help="Of the event, in the log.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept.")],
    by: Annotated[str, typer.Option(help="Who; it is kept. [default: the user]", show_default=False)] = "",
) -> None:
    """Have a follower pass over one event that it cannot take in."""
    with Application.open() as app:
        app.maintenance.skip_event(name, position, by or getpass.getuser(), reason)
    out.print(f"{name} will pass over the event at {position}", markup=False)


@commands.command()
def skipped(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show the events that a follower passed over, or will."""
    with Application.open() as app:
        found = app.maintenance.skipped_events(name)
    for event in found:
        if as_json:
            print_json(event._asdict())
        else:
            said = f"{event.position}  {event.skipped_at:%Y-%m-%dT%H:%M:%SZ}  {event.skipped_by}: {event.reason}"
            out.print(said, markup=False, highlight=False, soft_wrap=True)


@commands.command()
def restart(
    name: NameArgument,
    position: Annotated[str, typer.Argument(help="A position of the log, 0 for its beginning, or now.")],
) -> None:
    """Have a follower go on after a position, wherever it is: for instance after the log was restored."""
    to: int | Literal["now"] = "now" if position == "now" else whole_number(position)
    with Application.open() as app:
        out.print(f"{name} goes on after {app.maintenance.restart_follower(name, to)}", markup=False)


@commands.command()
def forget(name: NameArgument) -> None:
    """Drop the checkpoint of a follower that is no longer there."""
    with Application.open() as app:
        app.maintenance.forget_follower(name)
    out.print(f"{name} is forgotten", markup=False)


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a position nor now")
    return int(text)
