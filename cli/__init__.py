"""The command line: parse, call, print. Exit codes: 0 fine, 1 found something, 2 wrong use or cannot be done."""

import json
import shlex
import signal
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from coupon_clock.app import Application
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.importing.files import Format, format_of, line_count, opened
from coupon_clock.importing.importer import Refused, Tally, import_records, records_of
from coupon_clock.infrastructure.loop import tune_interpreter
from coupon_clock.infrastructure.progress import shown_progress
from coupon_clock.infrastructure.scheduling.due_result import Completed, NotDue
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.infrastructure.telemetry import log_to_stderr
from coupon_clock.maintenance.doctor import examine
from coupon_clock.maintenance.verify.promise import Report
from coupon_clock.maintenance.verify.rows import ALARM, Part
from coupon_clock.maintenance.verify.stored_rows import Difference
from coupon_clock.projections.rebuild.rebuild import RebuildOptions
from coupon_clock.projections.registry import PROJECTIONS
from coupon_clock.runtime import ROLES, Role

FOUND_SOMETHING = 1
WRONG_USE = 2
INTERRUPTED = 130
MOST_SHOWN = 1_000
PROJECTED = [projection.name for projection in PROJECTIONS]

cli = typer.Typer(
    help="Coupon templates that end exactly on time.", no_args_is_help=True, pretty_exceptions_enable=False
)
local = typer.Typer(help="PostgreSQL and RocketMQ for development, under one folder.", no_args_is_help=True)
rejected = typer.Typer(help="Messages that were set aside, because they could not be acted on.", no_args_is_help=True)
cli.add_typer(local, name="local")
cli.add_typer(rejected, name="rejected")

out = Console()
err = Console(stderr=True)

LimitOption = Annotated[int, typer.Option(min=1, help="At most so many.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


def main() -> None:
    """An expected error is one sentence on stderr; Ctrl-C is no error."""
    log_to_stderr()
    try:
        cli()
    except CouponClockError as error:
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
    with Application.open() as app:
        tune_interpreter()
        with app.running(roles):
            stop.wait()


@cli.command("import")
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
            with Application.open() as app, shown_progress(err, "importing", after) as progress:
                for imported in import_records(app, records, after):
                    for refused in imported.refused:
                        tell_refused(refused, as_json)
                    done.add(imported)
                    progress(done.through, total)
    except KeyboardInterrupt:
        tell_stopped("stopped.", file, data_format, done, as_json)
        raise typer.Exit(INTERRUPTED) from None
    except CouponClockError as error:
        if done.through == after:
            raise
        tell_stopped(str(error), file, data_format, done, as_json)
        raise typer.Exit(WRONG_USE) from error
    if as_json:
        print_json({"accepted": done.accepted, "refused": done.refused})
    else:
        out.print(done)
    raise typer.Exit(FOUND_SOMETHING if done.refused else 0)


@cli.command()
def rebuild(
    name: Annotated[str, typer.Argument(help=f"{', '.join(PROJECTED)}, or alarm.")] = PROJECTED[0],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted rebuild left.")] = False,
    throttle: Annotated[
        float | None, typer.Option(min=1, metavar="EVENTS_PER_S", help="At most so many events a second.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and fold everything, write nothing.")] = False,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Keep the old table as NAME_old.")] = False,
) -> None:
    """Replay the log into new rows and swap them in; commands and queries go on. An alarm is mended in place."""
    options = RebuildOptions(resume=resume, events_per_s=throttle, jobs=jobs, keep_old=keep_old)
    try:
        with Application.open() as app, shown_progress(err, "replaying") as progress:
            told = rebuilt(app, name, options, dry_run, lambda step, done, total: progress(done, total, step))
    except KeyboardInterrupt:
        err.print(f"stopped; nothing live has changed. Go on with: coupon-clock rebuild {name} --resume")
        raise typer.Exit(INTERRUPTED) from None
    out.print(told)


def rebuilt(
    app: Application, name: str, options: RebuildOptions, dry_run: bool, progress: Callable[[str, int, int], object]
) -> str:
    if name == ALARM:
        return f"{app.repair_alarms():,} alarms were mended"
    if dry_run:
        dry = app.dry_run(name, progress)
        return f"{name}: {dry.events:,} events make {dry.rows:,} rows, read and folded in {dry.seconds:.1f} s"
    done = app.rebuild(name, options, progress)
    return f"{name} was rebuilt up to position {done.position:,}: {done.events:,} events in {done.seconds:.1f} s"


@cli.command()
def verify(
    name: Annotated[str | None, typer.Argument(help=f"{', '.join(PROJECTED)}, or alarm; by default all.")] = None,
    sample: Annotated[
        float | None, typer.Option(min=0, max=100, metavar="PERCENT", help="Only a sample of the templates.")
    ] = None,
    since: Annotated[
        int | None, typer.Option(min=0, metavar="POSITION", help="Only templates changed after this position.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare projections and alarms with the log, on a running system. Exit code 1 if they differ."""
    with Application.open() as app:
        differences = app.verify(name, Part(since=since, percent=sample))
        shown = list(islice(differences, MOST_SHOWN))
        further = sum(1 for _ in differences)
    if as_json:
        for difference in shown:
            print_json(msgspec.to_builtins(difference))
    elif shown:
        out.print(differences_table(shown))
        out.print(f"{len(shown) + further:,} differences. Mend them with: {mending(shown)}", soft_wrap=True)
    else:
        out.print(f"{name or 'every projection and alarm'} is what the log says")
    raise typer.Exit(FOUND_SOMETHING if shown else 0)


def mending(differences: list[Difference]) -> str:
    return ", ".join(f"coupon-clock rebuild {table}" for table in sorted({d.table for d in differences}))


@cli.command()
def check(as_json: JsonOption = False) -> None:
    """Prove from the log that every template ended once, last and not early; and say how late."""
    with Application.open() as app:
        report = app.check()
    if as_json:
        print_json(report_as_json(report))
    else:
        tell_report(report)
    raise typer.Exit(FOUND_SOMETHING if report.found_something else 0)


@cli.command()
def doctor(as_json: JsonOption = False) -> None:
    """Look at all that this stands on: PostgreSQL, clocks, alarms, RocketMQ. Exit code 1 if anything is wrong."""
    healthy = True
    for diagnosis in examine(Settings.load()):
        healthy &= diagnosis.ok
        if as_json:
            print_json(diagnosis._asdict())
        else:
            out.print(
                f"{'ok  ' if diagnosis.ok else 'MEND'}  {diagnosis.part}: {diagnosis.says}",
                markup=False,
                soft_wrap=True,
            )
    raise typer.Exit(0 if healthy else FOUND_SOMETHING)


@cli.command()
def rearm() -> None:
    """Publish all alarms again: for a broker that lost its store. Stopped in between, it can be run again."""
    with Application.open() as app, shown_progress(err, "rearming") as progress:
        rearmed = app.rearm(lambda done: progress(done, None))
    out.print(f"{rearmed:,} alarms are to be published again by the relays")


@rejected.command("list")
def list_rejected(limit: LimitOption = MOST_SHOWN, as_json: JsonOption = False) -> None:
    """Show messages that were set aside, oldest first. Exit code 1 if there are any."""
    with Application.open() as app:
        messages = app.rejected(limit)
    for message in messages:
        if as_json:
            print_json(message._asdict() | {"body": message.body.decode(errors="replace")})
        else:
            body = message.body.decode(errors="replace")
            out.print(f"{message.id}  {message.rejected_at:%Y-%m-%dT%H:%M:%SZ}  {message.reason}", markup=False)
            out.print(f"    {body!r}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(FOUND_SOMETHING if messages else 0)


@rejected.command()
def retry(limit: LimitOption = MOST_SHOWN) -> None:
    """Look at the templates that they mean, and drop what is settled. Exit code 1 if any is left."""
    with Application.open() as app:
        messages = app.rejected(limit)
        answers = app.retry_rejected(messages)
        settled = [m.id for m, a in zip(messages, answers, strict=True) if isinstance(a, Completed | NotDue)]
        app.drop_rejected(settled)
    out.print(f"{len(settled)} settled, {len(messages) - len(settled)} left")
    raise typer.Exit(FOUND_SOMETHING if len(settled) < len(messages) else 0)


@rejected.command()
def drop(
    ids: Annotated[list[int] | None, typer.Argument(help="The ids that `list` shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop all of them.")] = False,
) -> None:
    """Forget messages that were set aside."""
    if not ids and not everything:
        raise typer.BadParameter("name the ids to drop, or say --all")
    with Application.open() as app:
        out.print(f"{app.drop_rejected(None if everything else ids)} dropped")


# ── local servers ────────────────────────────────────────────────────────────────────────────────

Folder = Annotated[Path, typer.Option("--dir", help="Where the servers keep everything.")]
EnvOption = Annotated[bool, typer.Option("--env", help='Print export lines, for eval "$(…)".')]
MemoryOption = Annotated[bool, typer.Option("--memory", help="PostgreSQL only, for the in-process broker.")]
DEFAULT_FOLDER = Path(".local")


@local.command()
def up(folder: Folder = DEFAULT_FOLDER, env: EnvOption = False, memory: MemoryOption = False) -> None:
    """Start what is not running; the servers stay up until `down`."""
    from coupon_clock.local_servers.progress import shown
    from coupon_clock.local_servers.servers import LocalServers

    servers = LocalServers(folder, "memory" if memory else "rocketmq")
    with shown() as progress:
        servers.up(progress)
    tell_environment(servers.environment(), env)


@local.command()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the servers; their data stays."""
    from coupon_clock.local_servers.servers import LocalServers

    LocalServers(folder).down()
    out.print("stopped")


@local.command()
def status(folder: Folder = DEFAULT_FOLDER, env: EnvOption = False, as_json: JsonOption = False) -> None:
    """Show what runs. Exit code 1 if anything does not."""
    from coupon_clock.local_servers.servers import LocalServers

    servers = LocalServers(folder)
    rows = servers.status()
    if env:
        tell_environment(servers.environment(), env)
    for row in rows:
        if as_json:
            print_json(row._asdict())
        elif not env:
            state = f"running, pid {row.pid}, {row.address}" if row.running else "not running"
            out.print(f"{row.name}: {state}", soft_wrap=True)
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


def tell_refused(refused: Refused, as_json: bool) -> None:
    if as_json:
        print_json(refused._asdict())
    else:
        err.print(f"line {refused.line}: {refused.reason}", markup=False, highlight=False, soft_wrap=True)


def tell_stopped(why: str, file: Path, data_format: Format | None, done: Tally, as_json: bool) -> None:
    options = (["--format", data_format] if data_format else []) + (["--json"] if as_json else [])
    command = shlex.join(["coupon-clock", "import", str(file), *options, "--after", str(done.through)])
    told = f"{why} All up to line {done.through:,} is done: {done}. Go on with: {command}"
    err.print(told, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json({"accepted": done.accepted, "refused": done.refused, "after": done.through})


def differences_table(differences: list[Difference]) -> Table:
    table = Table("table", Column("id", overflow="fold"), "column", "is", "should be")
    for difference in differences:
        table.add_row(
            difference.table, str(difference.id), difference.column, str(difference.is_value), str(difference.should_be)
        )
    return table


def tell_report(report: Report) -> None:
    ended = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.ended.items())) or "none ended"
    out.print(f"{report.templates:,} templates: {ended}, {report.overdue_count:,} overdue")
    for cause, late in sorted(report.lateness.items()):
        p50, p99 = late.quantile(0.5), late.quantile(0.99)
        worst = late.worst.total_seconds()
        out.print(f"ended by {cause}: {late.count:,}, late p50 {p50:.4f} s, p99 {p99:.4f} s, worst {worst:.4f} s")
    for violation in report.violations:
        place = "" if violation.position is None else f" at position {violation.position}"
        out.print(f"{violation.stream_id}{place}: {violation.what}", markup=False, soft_wrap=True)
    for stream_id in report.overdue:
        out.print(f"{stream_id}: overdue", soft_wrap=True)
    out.print(f"{report.violation_count:,} violations of the promise")


def report_as_json(report: Report) -> dict[str, object]:
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
        "templates": report.templates,
        "ended": dict(report.ended),
        "lateness": lateness,
        "violation_count": report.violation_count,
        "violations": msgspec.to_builtins(report.violations),
        "overdue_count": report.overdue_count,
        "overdue": [str(stream_id) for stream_id in report.overdue],
    }


def print_json(value: object) -> None:
    print(json.dumps(value, default=str))  # noqa: T201


if __name__ == "__main__":
    main()
