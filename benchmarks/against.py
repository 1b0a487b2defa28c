"""This edition beside an older commit, in turns on one PostgreSQL: the medians of both, and the ratio.

    python benchmarks/against.py COMMIT [--json] [--figures execute execute_many ends rows] [--rounds 3]

The commit is cloned into a temporary folder, where `make setup` makes an environment with its own dependencies; each
edition is measured by its own interpreter (editions/). What is measured here is the working tree, as it is.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from measure import Figure, arguments, at_least, at_least_times, say, servers, tell

ROOT = Path(__file__).parent.parent
EDITIONS = Path(__file__).parent / "editions"
FIRST, SECOND = EDITIONS / "first.py", EDITIONS / "second.py"
ONLY_IN_THE_FIRST = "clockwork.py"
REV_PARSE = ("git", "-C", str(ROOT), "rev-parse", "--quiet", "--verify")

TARGETS = {
    "execute of a new template, 1 thread": 0.95,
    "execute of a new template, 4 threads": 0.95,
    "execute of a new template, 16 threads": 2.2,
    "execute_many of new templates": 0.95,
    "ends at one instant, until the last is stored": 3,
    "rebuild": 1,
    "verify rows": 2,
}
"""Ratios to the first edition."""
MEASURES = ("execute", "execute_many", "ends", "rows")


class Edition(NamedTuple):
    name: str
    interpreter: Path
    script: Path


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("commit")
    parser.add_argument("--figures", nargs="+", choices=MEASURES, default=MEASURES, help="by default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=float, default=1.0, help="0.01: a hundredth of everything, to try it out")
    given = parser.parse_args()
    found = subprocess.run([*REV_PARSE, f"{given.commit}^{{commit}}"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        parser.error(f"there is no commit {given.commit} here: name one that `git log` shows")
    now = Edition("this edition", Path(sys.executable), SECOND)
    with edition_at(found.stdout.strip()) as before, servers("memory") as running:
        measure = Turns(before, now, running.postgres.url, given.rounds, given.size)
        return tell((figure for name in given.figures for figure in measure.in_turns(name)), given.json)


@contextmanager
def edition_at(commit: str) -> Iterator[Edition]:
    with TemporaryDirectory(prefix="coupon-clock-edition-") as folder:
        say(f"cloning {commit[:7]}")
        run("git", "clone", "--quiet", "--no-checkout", str(ROOT), folder)
        run("git", "-C", folder, "checkout", "--quiet", "--detach", commit)
        say("making its environment")
        run("make", "--silent", "-C", folder, "setup", f"PYTHON={sys.executable}")
        script = FIRST if (Path(folder) / ONLY_IN_THE_FIRST).exists() else SECOND
        yield Edition(f"commit {commit[:7]}", Path(folder) / ".venv" / "bin" / "python", script)


def run(*command: str) -> None:
    """Stdout carries nothing but figures."""
    subprocess.run(command, stdout=sys.stderr, check=True)


class Turns(NamedTuple):
    before: Edition
    now: Edition
    server_url: str
    rounds: int
    size: float

    def in_turns(self, measure: str) -> Iterator[Figure]:
        """Each edition is the first one in every second round."""
        values: dict[Edition, dict[str, list[float]]] = {self.before: {}, self.now: {}}
        units: dict[str, str] = {}
        for number in range(self.rounds):
            for edition in (self.before, self.now) if number % 2 == 0 else (self.now, self.before):
                say(f"{measure}, round {number + 1} of {self.rounds}: {edition.name}")
                for name, value, unit in self.measured(edition, measure):
                    say(f"{name}: {value:,.0f} {unit}")
                    values[edition].setdefault(name, []).append(value)
                    units[name] = unit
        for name, unit in units.items():
            value, reference = (median(values[edition][name]) for edition in (self.now, self.before))
            if self.before.script == FIRST:
                yield at_least_times(name, value, unit, reference, TARGETS[name])
            else:
                yield at_least(name, value, unit, None, reference)

    def measured(self, edition: Edition, measure: str) -> Sequence[tuple[str, float, str]]:
        command = [str(edition.interpreter), str(edition.script), measure]
        options = ["--server-url", self.server_url, "--size", str(self.size)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COUPON_CLOCK_")}
        done = subprocess.run([*command, *options], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        figures = map(json.loads, done.stdout.splitlines())
        return [(figure["name"], figure["value"], figure["unit"]) for figure in figures]


if __name__ == "__main__":
    sys.exit(main())
