"""Runs the slow proofs and keeps their last output in docs/tested.md: python docs/keep_tested.py."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tested.md"
PROOFS = (
    [sys.executable, "-m", "pytest", "-q", "-s", "tests/test_faults.py", "-k", "grows", "--long-outage=10"],
    [sys.executable, "benchmarks/event_log.py"],
)


def main() -> int:
    output, failed = [], False
    for command in PROOFS:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout)  # noqa: T201
        failed |= done.returncode != 0
        output.append(f"$ python {' '.join(command[1:])}\n{done.stdout.strip()}")
    machine = f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {platform.machine()}"
    text, _, _ = PAGE.read_text().partition("```\n")
    PAGE.write_text(f"{text}```\n{machine}\n\n{chr(10).join(output)}\n```\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
