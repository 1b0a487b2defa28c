"""`import`: templates from a file."""

import shlex
import signal
from pathlib import Path
from typing import Annotated

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import FOUND_SOMETHING, INTERRUPTED, WRONG_USE, JsonOption, err, out, print_json
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.importing.files import Format, format_of, line_count, opened
from coupon_clock.importing.importer import RefusedLine, Tally, import_records, records_of
from coupon_clock.infrastructure.progress import shown_progress


def import_file(
    file: Annotated[Path, typer.Argument(help="JSON lines or CSV, one template each; - for standard input.")],
    data_format: Annotated[
        Format | None, typer.Option("--format", help="By default csv for names that end so, else json.")
    ] = None,
    after: Annotated[
        int, typer.Option(min=0, metavar="LINE", help="Pass over all up to this line, to go on after a stop.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Create many templates from a file. Refused lines are reported by number, the others go in.

    Importing a file again changes nothing. When stopped, it says how to go on.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    done = Tally(after)
    try:
        with opened(file) as stream:
            records = records_of(stream, data_format or format_of(file))
            total = line_count(file)
            with Application.open() as app, shown_progress(err, after) as progress:
                for imported in import_records(app, records, after):
                    for refused in imported.refused:
                        print_refused(refused, as_json)
                    done.add(imported)
                    progress("importing", done.through, total)
    except KeyboardInterrupt:
        print_stopped("stopped.", file, data_format, done, as_json)
        raise typer.Exit(INTERRUPTED) from None
    except CouponClockError as error:
        if done.through == after:
            raise
        print_stopped(str(error), file, data_format, done, as_json)
        raise typer.Exit(WRONG_USE) from error
    if as_json:
        print_json(done.as_json())
    else:
        out.print(done)
    raise typer.Exit(FOUND_SOMETHING if done.refused else 0)


def print_refused(refused: RefusedLine, as_json: bool) -> None:
    if as_json:
        print_json(refused._asdict())
    else:
        err.print(f"line {refused.line}: {refused.reason}", markup=False, highlight=False, soft_wrap=True)


def print_stopped(why: str, file: Path, data_format: Format | None, done: Tally, as_json: bool) -> None:
    options = (["--format", data_format] if data_format else []) + (["--json"] if as_json else [])
    command = shlex.join(["coupon-clock", "import", str(file), *options, "--after", str(done.through)])
    message = f"{why} All up to line {done.through:,} is done: {done}. Go on with: {command}"
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json({**done.as_json(), "after": done.through})
