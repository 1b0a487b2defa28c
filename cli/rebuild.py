"""`rebuild` and `rearm`: what is derived, made anew."""

from typing import Annotated
from uuid import UUID

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import INTERRUPTED, err, out
from coupon_clock.infrastructure.progress import Progress, shown_progress
from coupon_clock.maintenance.verify.alarms import ALARM
from coupon_clock.projections.rebuild.rebuild import RebuildOptions
from coupon_clock.projections.registry import PROJECTIONS

PROJECTED = [projection.name for projection in PROJECTIONS]


def rebuild(
    name: Annotated[str, typer.Argument(help=f"{', '.join(PROJECTED)}, or alarm.")] = PROJECTED[0],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted rebuild left.")] = False,
    throttle: Annotated[
        float | None, typer.Option(min=1, metavar="EVENTS_PER_S", help="At most so many events a second.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; by default one a processor, and for two of DATABASE_CONNECTIONS."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and fold everything, write nothing.")] = False,
    stream: Annotated[UUID | None, typer.Option(help="Only the row of this stream.")] = None,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Keep the old table as NAME_old.")] = False,
) -> None:
    """Replay the log into new rows and swap them in; commands and queries go on. Alarms are repaired in place."""
    if stream is not None:
        with Application.open() as app:
            app.maintenance.rebuild_row(name, stream)
        out.print(f"the row of {stream} in {name} was made anew")
        return
    options = RebuildOptions(resume=resume, events_per_s=throttle, jobs=jobs, keep_old=keep_old)
    try:
        with Application.open() as app, shown_progress(err) as progress:
            message = rebuilt(app, name, options, dry_run, progress)
    except KeyboardInterrupt:
        err.print(f"stopped; nothing live has changed. Go on with: coupon-clock rebuild {name} --resume")
        raise typer.Exit(INTERRUPTED) from None
    out.print(message)


def rebuilt(app: Application, name: str, options: RebuildOptions, dry_run: bool, progress: Progress) -> str:
    if name == ALARM:
        return f"{app.maintenance.repair_alarms():,} alarms were repaired"
    if dry_run:
        dry = app.maintenance.dry_run(name, progress)
        failed = f", {dry.failed:,} streams cannot be taken in" if dry.failed else ""
        return f"{name}: {dry.events:,} events make {dry.rows:,} rows, read and folded in {dry.seconds:.1f} s{failed}"
    done = app.maintenance.rebuild(name, options, progress)
    return f"{name} was rebuilt up to position {done.position:,}: {done.events:,} events in {done.seconds:.1f} s"


def rearm() -> None:
    """Publish all alarms again: for a broker that lost its store. Stopped in between, it can be run again."""
    with Application.open() as app, shown_progress(err) as progress:
        rearmed = app.maintenance.rearm(progress)
    out.print(f"{rearmed:,} alarms are to be published again by the relays")
