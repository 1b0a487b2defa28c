"""`migrate` and `run`."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event
from typing import Annotated

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import out
from coupon_clock.deadlines import ROLES, Role
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.loop import LoopDied, tune_interpreter
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.maintenance.exporter import serving

LOOP_DIED = 1
LONGEST_SESSION_NAME = 63
SIGNAL_POLL_S = 0.5
"""A signal that comes just before the main thread sleeps does not wake it: its handler runs when the wait is over."""

log = Log(__name__)


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL, change nothing.")] = False,
    print_roles: Annotated[
        bool, typer.Option("--print-roles", help="Print SQL that makes an owner, an application and a reader.")
    ] = False,
) -> None:
    """Make the tables, or bring them up to date."""
    settings = Settings.load()
    if print_roles or dry_run:
        sql = Application.roles_sql(settings) if print_roles else Application.planned_migration(settings)
        sys.stdout.write(f"{sql}\n" if sql else "")
        return
    numbers = Application.migrate(settings)
    out.print(f"applied migrations {', '.join(map(str, numbers))}" if numbers else "the schema is up to date")


def run(
    role: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(ROLES)}; repeat it for several.")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Serve /metrics, /livez and /readyz; by default nowhere."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address that these are served at.")] = "127.0.0.1",
) -> None:
    """Run all loops, or some, until Ctrl-C or SIGTERM; what is in hand is finished first."""
    roles = roles_named(role)
    name_sessions(roles)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Application.open() as app:
        tune_interpreter()
        served = nullcontext() if port is None else serving(app.runtime.deadlines, port, host)
        with exit_where_a_loop_died(), served, app.running(roles, died=lambda _: stop.set()):
            while not stop.wait(SIGNAL_POLL_S):
                pass


def name_sessions(roles: list[Role]) -> None:
    """So that pg_stat_activity says whose they are; a name in the URL, or in PGAPPNAME, comes before this one."""
    name = "all" if roles == list(ROLES) else ",".join(roles)
    os.environ.setdefault("PGAPPNAME", f"{name}@{socket.gethostname()}"[:LONGEST_SESSION_NAME])


@contextmanager
def exit_where_a_loop_died() -> Iterator[None]:
    """With a code other than that of wrong use: whatever watches this process is to start it again."""
    try:
        yield
    except LoopDied as death:
        log.error("ends because a loop died", action="exit", why=death)
        raise typer.Exit(LOOP_DIED) from None


def roles_named(names: list[str] | None) -> list[Role]:
    roles = [role for role in ROLES if not names or role in names]
    unknown = set(names or ()) - set(ROLES)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is not a role; the roles are {', '.join(ROLES)}")
    return roles
