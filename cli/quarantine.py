"""`quarantine`: streams that projections leave alone, because they could not take in one of their events."""

from typing import Annotated
from uuid import UUID

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import FOUND_SOMETHING, MOST_SHOWN, JsonOption, LimitOption, out, print_json
from coupon_clock.cli.printable import printable
from coupon_clock.projections.engine.quarantine import Quarantined

commands = typer.Typer(help="Streams that projections leave alone.", no_args_is_help=True)


@commands.command("list")
def list_quarantined(limit: LimitOption = MOST_SHOWN, as_json: JsonOption = False) -> None:
    """Show which, since when and why. Exit code 1 if there are any."""
    with Application.open() as app:
        found = app.maintenance.quarantined(limit)
    show(found, as_json)
    raise typer.Exit(FOUND_SOMETHING if found else 0)


@commands.command()
def retry(
    stream: Annotated[UUID | None, typer.Option(help="Only this one.")] = None, as_json: JsonOption = False
) -> None:
    """Make their rows anew, and show those that are left. Exit code 1 if there are any."""
    with Application.open() as app:
        left = app.maintenance.retry_quarantined(stream)
    show(left, as_json)
    raise typer.Exit(FOUND_SOMETHING if left else 0)


def show(quarantined: list[Quarantined], as_json: bool) -> None:
    for each in quarantined:
        if as_json:
            print_json(each._asdict())
        else:
            place = f"{each.projection}  {each.stream_id}  {each.since:%Y-%m-%dT%H:%M:%SZ}"
            said = f"{place}  at position {each.position}: {printable(each.reason)}"
            out.print(said, markup=False, highlight=False, soft_wrap=True)
