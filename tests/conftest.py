"""Real servers, once a run: an embedded PostgreSQL and, for tests marked `rocketmq`, a real RocketMQ."""

import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest
from rich.console import Console

from coupon_clock.app import Application, Settings
from coupon_clock.infrastructure.progress import shown_progress
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from coupon_clock.testing import TestApplication, open_test_application, throw_away_database

sys.path.insert(0, str(Path(__file__).parent))  # tests import examples.py and the contract suites by name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long-outage",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="how long RocketMQ is away in tests/test_faults.py",
    )
    parser.addoption(
        "--every-setting",
        action="store_true",
        help="in tests/test_session_settings.py, walk once for each value of each setting, too",
    )


hypothesis.settings.register_profile("long", max_examples=1_000)
hypothesis.settings.register_profile("first")

MORNING = datetime(2026, 3, 1, 8, tzinfo=UTC)


def pytest_configure() -> None:
    """A shell has Ctrl-C ignored by what it runs in the background, and what the tests start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those on RocketMQ stay together, because it is started once and is heavy; but for
    those that have servers of their own."""
    for item in items:
        if item.get_closest_marker("rocketmq") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("rocketmq"))


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Not pytest's own: as root, a second run beside this one would lock the servers' user out of it."""
    with TemporaryDirectory(prefix="coupon-clock-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(server_folder / "postgres")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def rocketmq(server_folder: Path) -> Iterator[LocalRocketMQ]:
    """`.endpoints`, and `.provision(topic, group)` for tests that want their own."""
    server = LocalRocketMQ(server_folder / "rocketmq")
    with shown_progress(Console(stderr=True)) as progress:
        server.start(progress)
    yield server
    server.kill()


@pytest.fixture
def database_url(postgres: LocalPostgres) -> Iterator[str]:
    """A new database with all tables."""
    with throw_away_database(postgres.url) as url:
        yield url


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings.load(database_url=database_url)


@pytest.fixture
def live(settings: Settings) -> Iterator[Application]:
    """An application on the real clock, with nothing running."""
    with Application.open(settings) as app:
        yield app


@pytest.fixture
def app(database_url: str) -> Iterator[TestApplication]:
    """An application whose clock is turned by hand; it is the MORNING of 1 March 2026."""
    with open_test_application(database_url, MORNING) as app:
        yield app
