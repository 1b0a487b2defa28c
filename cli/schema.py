"""`schema`: what is stored, for consumers in other languages."""

import msgspec
import typer

from coupon_clock.cli.output import print_json
from coupon_clock.domain.events import StoredEvent

commands = typer.Typer(help="What is stored, as JSON Schema.", no_args_is_help=True)
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@commands.callback()
def schema() -> None:
    """Makes this a group, though it has one command yet."""


@commands.command("events")
def events() -> None:
    """Print the JSON Schema of every event shape that the log may hold, as `state` has them."""
    print_json({"$schema": DIALECT, **msgspec.json.schema(StoredEvent)})
