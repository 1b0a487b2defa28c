"""Puts each known bug back, one at a time, and shows which test finds it, and how soon.

python tests/mutants/run.py [WORD …]: only the mutants with one of these words in their name. Exit code 1 where one
survives. A mutant is a patch of a few lines; the line `Tests:` above it is what pytest is asked to run. Those tests
must pass without it, which is tried first.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
TESTS = re.compile(r"^Tests: (.+)$", re.MULTILINE)
FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?([^/:\s]+\.py)(?:::(\S+))?", re.MULTILINE)
PROMISE = re.compile(r"^E +\S*(?:AssertionError|Unexpected): (P\d(?:, P\d)*):", re.MULTILINE)
EXAMPLES = re.compile(r"'examples': (\d+)")
FOUND = 1
"""What pytest returns where a test failed; whatever else it returns, no test has judged."""


class Verdict(NamedTuple):
    """`by`: the test that found it, or why it counts as a survivor."""

    mutant: str
    found: bool
    by: str
    seconds: float

    def __str__(self) -> str:
        return f"| {self.mutant} | {self.by if self.found else f'SURVIVED: {self.by}'} | {self.seconds:.0f} s |"


def copy_of_the_project(folder: Path) -> Path:
    """What git knows, and what is new; as a package of the name that tests import."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = folder / "coupon_clock"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def verdict(patch: Path) -> Verdict:
    with TemporaryDirectory(prefix="coupon-clock-mutant-") as folder:
        copy = copy_of_the_project(Path(folder))
        applied = subprocess.run(["git", "apply", str(patch)], cwd=copy, capture_output=True, text=True, check=False)
        if applied.returncode:
            return Verdict(patch.stem, False, f"it does not apply: {applied.stderr.strip()}", 0.0)
        started = monotonic()
        code, output = tested(copy, tests_of(patch))
        seconds = monotonic() - started
    return Verdict(patch.stem, code == FOUND, what_found_it(output) if code == FOUND else last_line(output), seconds)


def failing_without(tests: str) -> str | None:
    """What these tests say of the project as it is, if anything."""
    with TemporaryDirectory(prefix="coupon-clock-mutant-") as folder:
        code, output = tested(copy_of_the_project(Path(folder)), tests)
    return last_line(output) if code else None


def tests_of(patch: Path) -> str:
    (tests,) = TESTS.findall(patch.read_text())
    return str(tests)


def tested(copy: Path, tests: str) -> tuple[int, str]:
    """pytest's exit code, and what it printed."""
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(tests)],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["pytest said nothing"])[-1]


def what_found_it(output: str) -> str:
    found = FAILED.search(output)
    if found is None:
        return "see above"
    promise, examples = PROMISE.search(output), EXAMPLES.search(output)
    parts = [found[2] or found[1], promise and promise[1], examples and f"example {examples[1]}"]
    return ", ".join(filter(None, parts)).replace("_", " ")


def main(words: Sequence[str]) -> int:
    """The last line printed is the sum, for docs/tested.md."""
    patches = [patch for patch in sorted(FOLDER.glob("*.patch")) if not words or any(w in patch.stem for w in words)]
    for tests in sorted({tests_of(patch) for patch in patches}):
        if failure := failing_without(tests):
            print(f"no mutant was tried: without any, {tests} says: {failure}")
            return 1
    verdicts = []
    for patch in patches:
        verdicts.append(verdict(patch))
        print(verdicts[-1], flush=True)
    survivors = [each.mutant for each in verdicts if not each.found]
    print(f"{len(verdicts)} mutants, {len(survivors)} survived{': ' if survivors else ''}{', '.join(survivors)}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
