"""What all commands share: consoles, exit codes, options, JSON."""

import json
from typing import Annotated

import typer
from rich.console import Console

FOUND_SOMETHING = 1
WRONG_USE = 2
INTERRUPTED = 130
MOST_SHOWN = 1_000

out = Console()
err = Console(stderr=True)

LimitOption = Annotated[int, typer.Option(min=1, help="At most so many.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


def print_json(value: object) -> None:
    print(json.dumps(value, default=str))  # noqa: T201
