"""What all commands share: consoles, exit codes, options, JSON."""

import json
from typing import Annotated

import msgspec
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


def plain(value: object) -> dict[str, object]:
    """Structs and named tuples by their names, all the way down."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, list):
        return [plain(each) for each in value]  # type: ignore[return-value]
    return value  # type: ignore[return-value]
