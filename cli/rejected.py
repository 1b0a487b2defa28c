"""`rejected`: messages that could not be acted on."""

from typing import Annotated

import typer

from coupon_clock.app import Application
from coupon_clock.cli.output import FOUND_SOMETHING, MOST_SHOWN, JsonOption, LimitOption, out, print_json
from coupon_clock.cli.printable import printable
from coupon_clock.infrastructure.scheduling.due_result import Completed, NotDue

ReasonOption = Annotated[str, typer.Option(help="Only those whose reason contains this.")]

commands = typer.Typer(help="Messages that could not be acted on.", no_args_is_help=True)


@commands.command("list")
def list_rejected(limit: LimitOption = MOST_SHOWN, reason: ReasonOption = "", as_json: JsonOption = False) -> None:
    """Show messages that were rejected, oldest first. Exit code 1 if there are any."""
    with Application.open() as app:
        messages = app.maintenance.rejected(limit, reason)
    for message in messages:
        if as_json:
            print_json(message._asdict() | {"body": message.body.decode(errors="replace")})
        else:
            body = message.body.decode(errors="replace")
            head = f"{message.id}  {message.rejected_at:%Y-%m-%dT%H:%M:%SZ}  {printable(message.reason)}"
            cut = f" … of {message.body_bytes:,} bytes" if message.body_bytes > len(message.body) else ""
            out.print(head, markup=False, highlight=False, soft_wrap=True)
            out.print(f"    {printable(body)}{cut}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(FOUND_SOMETHING if messages else 0)


@commands.command()
def retry(limit: LimitOption = MOST_SHOWN, reason: ReasonOption = "") -> None:
    """Handle the templates that they mean, and drop what is settled. Exit code 1 if any is left."""
    with Application.open() as app:
        messages = app.maintenance.rejected(limit, reason)
        answers = app.maintenance.retry_rejected(messages)
        settled = [m.id for m, a in zip(messages, answers, strict=True) if isinstance(a, Completed | NotDue)]
        app.maintenance.drop_rejected(settled)
    out.print(f"{len(settled)} settled, {len(messages) - len(settled)} left")
    raise typer.Exit(FOUND_SOMETHING if len(settled) < len(messages) else 0)


@commands.command()
def drop(
    ids: Annotated[list[int] | None, typer.Argument(help="The ids that `list` shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop all of them.")] = False,
) -> None:
    """Forget messages that were rejected."""
    if not ids and not everything:
        raise typer.BadParameter("name the ids to drop, or say --all")
    with Application.open() as app:
        out.print(f"{app.maintenance.drop_rejected(None if everything else ids)} dropped")
