"""`doctor`: what all this stands on."""

import typer

from coupon_clock.cli.output import FOUND_SOMETHING, JsonOption, out, print_json
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.maintenance.doctor import examine


def doctor(as_json: JsonOption = False) -> None:
    """Look at all that this stands on: PostgreSQL, clocks, alarms, RocketMQ. Exit code 1 if anything is wrong."""
    healthy = True
    for diagnosis in examine(Settings.load()):
        healthy &= diagnosis.ok
        if as_json:
            print_json(diagnosis._asdict())
        else:
            out.print(
                f"{'ok  ' if diagnosis.ok else 'FIX '}  {diagnosis.part}: {diagnosis.says}",
                markup=False,
                soft_wrap=True,
            )
    raise typer.Exit(0 if healthy else FOUND_SOMETHING)
