"""The command line: parse, call, print. Exit codes: 0 fine, 1 found something, 2 wrong use or cannot be done."""

import sys

import typer

from coupon_clock.cli import (
    doctor,
    explain,
    followers,
    imports,
    local,
    quarantine,
    rebuild,
    rejected,
    schema,
    service,
    status,
    verify,
)
from coupon_clock.cli.output import WRONG_USE, err
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.logs import log_to_stderr

cli = typer.Typer(
    help="Coupon templates that end exactly on time.", no_args_is_help=True, pretty_exceptions_enable=False
)
cli.command()(service.migrate)
cli.command()(service.run)
cli.command("import")(imports.import_file)
for command in (status.status, explain.explain, rebuild.rebuild, verify.verify, doctor.doctor, rebuild.rearm):
    cli.command()(command)
cli.add_typer(followers.commands, name="followers")
cli.add_typer(local.commands, name="local")
cli.add_typer(quarantine.commands, name="quarantine")
cli.add_typer(rejected.commands, name="rejected")
cli.add_typer(schema.commands, name="schema")


def main() -> None:
    """An expected error is one sentence on stderr; Ctrl-C is no error."""
    log_to_stderr()
    try:
        cli()
    except CouponClockError as error:
        err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(WRONG_USE)
