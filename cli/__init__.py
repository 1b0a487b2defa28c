"""The command line: parse, call, print. Exit codes: 0 fine, 1 found something, 2 wrong use or cannot be done."""

import logging
import sys
from enum import StrEnum
from typing import Annotated

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
from coupon_clock.infrastructure.logs import LogFormat, log_to_stderr

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


class LogLevel(StrEnum):
    """As the standard library's logging has them."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@cli.callback()
def set_up(
    log_format: Annotated[
        LogFormat, typer.Option(envvar="COUPON_CLOCK_LOG_FORMAT", help="auto is text on a terminal, else JSON.")
    ] = LogFormat.AUTO,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="COUPON_CLOCK_LOG_LEVEL", help="The least that is logged, on stderr.")
    ] = LogLevel.INFO,
) -> None:
    """Coupon templates that end exactly on time."""
    log_to_stderr(log_format, logging.getLevelNamesMapping()[log_level.upper()])


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
    try:
        cli()
    except CouponClockError as error:
        err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(WRONG_USE)
