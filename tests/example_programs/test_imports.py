"""What an example imports is what its readers can import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PUBLIC = {"coupon_clock", "coupon_clock.aggregates", "coupon_clock.testing"}
SERVERS = {
    "coupon_clock.infrastructure.logs",
    "coupon_clock.infrastructure.progress",
    "coupon_clock.local_servers.folder_lock",
    "coupon_clock.local_servers.servers",
}
"""The demo starts servers of its own, and writes a log as the command line does."""

FILES = sorted(EXAMPLES.rglob("*.py"))


def modules_of_ours(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "coupon_clock":
            yield node.module or ""
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "coupon_clock")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_an_example_imports_only_what_is_public(file):
    allowed = PUBLIC | SERVERS if file.parent.name == "demo" else PUBLIC
    assert set(modules_of_ours(file)) <= allowed
