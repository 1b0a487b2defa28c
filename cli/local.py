"""`local`: PostgreSQL and RocketMQ for development."""

from pathlib import Path
from typing import Annotated

import typer

from coupon_clock.cli.output import FOUND_SOMETHING, JsonOption, err, out, print_json

commands = typer.Typer(help="PostgreSQL and RocketMQ for development, under one folder.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--dir", help="Where the servers keep everything.")]
EnvOption = Annotated[bool, typer.Option("--env", help='Print export lines, for eval "$(…)".')]
MemoryOption = Annotated[bool, typer.Option("--memory", help="PostgreSQL only, for the in-process broker.")]
DEFAULT_FOLDER = Path(".local")


@commands.command()
def up(folder: Folder = DEFAULT_FOLDER, env: EnvOption = False, memory: MemoryOption = False) -> None:
    """Start what is not running; the servers stay up until `down`."""
    from coupon_clock.infrastructure.progress import shown_progress
    from coupon_clock.local_servers.servers import LocalServers

    servers = LocalServers(folder, "memory" if memory else "rocketmq")
    with shown_progress(err) as progress:
        servers.up(progress)
    print_environment(servers.environment(), env)


@commands.command()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the servers; their data stays."""
    from coupon_clock.local_servers.servers import LocalServers, ever_started

    LocalServers(folder, ever_started(folder)).down()
    out.print("stopped")


@commands.command()
def status(folder: Folder = DEFAULT_FOLDER, env: EnvOption = False, as_json: JsonOption = False) -> None:
    """Show what runs, of what `up` was last asked for. Exit code 1 if anything does not."""
    from coupon_clock.local_servers.servers import LocalServers, last_started

    servers = LocalServers(folder, last_started(folder))
    rows = servers.status()
    if env:
        print_environment(servers.environment(), env)
    for row in rows:
        if as_json:
            print_json(row._asdict())
        elif not env:
            state = f"running, pid {row.pid}, {row.address}" if row.running else "not running"
            out.print(f"{row.name}: {state}", soft_wrap=True)
    raise typer.Exit(0 if all(row.running for row in rows) else FOUND_SOMETHING)


def print_environment(variables: dict[str, str], for_eval: bool) -> None:
    for name, value in variables.items():
        print(f"export {name}='{value}'" if for_eval else f"{name}={value}")  # noqa: T201
