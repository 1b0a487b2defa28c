"""The command line: parse, call, print. Exit codes: 0 fine, 1 found something, 2 wrong use or cannot be done."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from coupon_clock.app import ROLES, Application, Role
from coupon_clock.domain.errors import CouponError
from coupon_clock.importer import import_lines
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.infrastructure.telemetry import log_to_stderr
from coupon_clock.projections.verify import Difference

FOUND_SOMETHING = 1
WRONG_USE = 2
MOST_SHOWN = 1_000
PLAIN_LINE_EVERY = 50_000

cli = typer.Typer(
    help="Coupon templates that end exactly on time.", no_args_is_help=True, pretty_exceptions_enable=False
)
local = typer.Typer(help="PostgreSQL and RocketMQ for development, under one folder.", no_args_is_help=True)
cli.add_typer(local, name="local")

out = Console()
err = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


def main() -> None:
    """An expected error is one sentence on stderr; Ctrl-C is no error."""
    log_to_stderr()
    try:
        cli()
    except CouponError as error:
        err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(WRONG_USE)


@cli.command()
def migrate() -> None:
    """Make the tables, or bring them up to date."""
    numbers = Application.migrate(Settings.load())
    out.print(f"applied migrations {', '.join(map(str, numbers))}" if numbers else "the schema is up to date")


@cli.command()
def run(
    role: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(ROLES)}; repeat it for several.")] = None,
) -> None:
    """Run all loops, or some, until Ctrl-C or SIGTERM; what is in hand is finished first."""
    roles = roles_named(role)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Application.open() as app, app.running(roles):
        stop.wait()


@cli.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSON lines, one template each; - for standard input.")],
    as_json: JsonOption = False,
) -> None:
    """Create many templates from a file. Refused lines are reported by number, the others go in."""
    accepted, refused = 0, 0
    with opened(file) as lines, Application.open() as app, shown_progress("importing") as progress:
        for imported in import_lines(app, lines):
            accepted += imported.accepted
            refused += len(imported.refused)
            progress(accepted + refused, None)
            for line in imported.refused:
                tell_refused(line.number, line.reason, as_json)
    if as_json:
        print_json({"accepted": accepted, "refused": refused})
    else:
        out.print(f"{accepted:,} templates imported, {refused:,} lines refused")
    raise typer.Exit(FOUND_SOMETHING if refused else 0)


@cli.command()
def rebuild() -> None:
    """Replay the log into a new read model and swap it in. Commands and queries go on meanwhile."""
    with Application.open() as app, shown_progress("replaying") as progress:
        position = app.rebuild(progress)
    out.print(f"the read model was rebuilt up to position {position:,}")


@cli.command()
def verify(as_json: JsonOption = False) -> None:
    """Compare the read model and the alarms with the log, on a running system."""
    with Application.open() as app:
        differences = app.verify()
        shown = list(islice(differences, MOST_SHOWN))
        further = sum(1 for _ in differences)
    if as_json:
        for difference in shown:
            print_json(msgspec.to_builtins(difference))
    elif shown:
        out.print(differences_table(shown))
        out.print(f"{len(shown) + further:,} differences. Mend the read model with: coupon-clock rebuild")
    else:
        out.print("the read model and the alarms are what the log says")
    raise typer.Exit(FOUND_SOMETHING if shown else 0)


# ── local servers ────────────────────────────────────────────────────────────────────────────────

Folder = Annotated[Path, typer.Option("--dir", help="Where the servers keep everything.")]
EnvOption = Annotated[bool, typer.Option("--env", help='Print export lines, for eval "$(…)".')]
MemoryOption = Annotated[bool, typer.Option("--memory", help="PostgreSQL only, for the in-process broker.")]
DEFAULT_FOLDER = Path(".local")


@local.command()
def up(folder: Folder = DEFAULT_FOLDER, env: EnvOption = False, memory: MemoryOption = False) -> None:
    """Start what is not running; the servers stay up until `down`."""
    from coupon_clock.infrastructure.local.progress import shown
    from coupon_clock.infrastructure.local.servers import LocalServers

    servers = LocalServers(folder, "memory" if memory else "rocketmq")
    with shown() as progress:
        servers.up(progress)
    tell_environment(servers.environment(), env)


@local.command()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the servers; their data stays."""
    from coupon_clock.infrastructure.local.servers import LocalServers

    LocalServers(folder).down()
    out.print("stopped")


@local.command()
def status(folder: Folder = DEFAULT_FOLDER, env: EnvOption = False, as_json: JsonOption = False) -> None:
    """Show what runs. Exit code 1 if anything does not."""
    from coupon_clock.infrastructure.local.servers import LocalServers

    servers = LocalServers(folder)
    rows = servers.status()
    if env:
        tell_environment(servers.environment(), env)
    for row in rows:
        if as_json:
            print_json(row._asdict())
        elif not env:
            out.print(f"{row.name}: {f'running, pid {row.pid}, {row.address}' if row.running else 'not running'}")
    raise typer.Exit(0 if all(row.running for row in rows) else FOUND_SOMETHING)


def tell_environment(variables: dict[str, str], for_eval: bool) -> None:
    for name, value in variables.items():
        print(f"export {name}='{value}'" if for_eval else f"{name}={value}")  # noqa: T201


# ── what the commands share ──────────────────────────────────────────────────────────────────────


def roles_named(names: list[str] | None) -> list[Role]:
    roles = [role for role in ROLES if not names or role in names]
    unknown = set(names or ()) - set(ROLES)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is not a role; the roles are {', '.join(ROLES)}")
    return roles


@contextmanager
def opened(file: Path) -> Iterator[Iterator[bytes]]:
    if str(file) == "-":
        yield iter(sys.stdin.buffer)
        return
    try:
        with file.open("rb") as lines:
            yield iter(lines)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from error


def tell_refused(number: int, reason: str, as_json: bool) -> None:
    if as_json:
        print_json({"line": number, "reason": reason})
    else:
        err.print(f"line {number}: {reason}", markup=False, highlight=False, soft_wrap=True)


def differences_table(differences: list[Difference]) -> Table:
    table = Table("table", "id", "column", "is", "should be")
    for difference in differences:
        table.add_row(
            difference.table, str(difference.id), difference.column, str(difference.is_value), str(difference.should_be)
        )
    return table


def print_json(value: object) -> None:
    print(json.dumps(value, default=str))  # noqa: T201


class ProgressOf:
    """`progress(done, total)`: a bar on a terminal, a plain line now and then when piped."""

    def __init__(self, what: str, bar: Progress | None) -> None:
        self._what = what
        self._bar = bar
        self._task = bar.add_task(what, total=None) if bar else None
        self._next_line = PLAIN_LINE_EVERY

    def __call__(self, done: int, total: int | None) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif done >= self._next_line:
            err.print(f"{self._what}: {done:,}{f' of {total:,}' if total else ''}", highlight=False)
            self._next_line = done + PLAIN_LINE_EVERY


@contextmanager
def shown_progress(what: str) -> Iterator[ProgressOf]:
    if not err.is_terminal:
        yield ProgressOf(what, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        yield ProgressOf(what, bar)


if __name__ == "__main__":
    main()
