"""Processes that take part in a rebuild: how many, and what they say when they fail."""

import subprocess
import sys

import msgspec
import pytest

from coupon_clock.app import Settings
from coupon_clock.projections.rebuild import workers
from coupon_clock.projections.rebuild.workers import Job, fitting_processes


@pytest.mark.parametrize(
    ("processors", "connections", "processes"),
    [(1, 10, 1), (2, 10, 2), (64, 10, 5), (64, 126, 63), (64, 3, 1), (64, 2, 1)],
)
def test_there_are_as_many_as_processors_may_be_used_and_as_have_their_connections(
    monkeypatch, processors, connections, processes
):
    monkeypatch.setattr(workers, "usable_processors", lambda: processors)
    assert fitting_processes(Settings.load(database_connections=connections)) == processes


def test_one_that_fails_says_why_to_the_process_that_started_it_and_nothing_past_its_log():
    job = Job("postgresql://nobody@127.0.0.1:1/nothing", "coupon_clock", "coupon_template", None)
    ran = subprocess.run(
        [sys.executable, "-m", workers.__name__],
        input=msgspec.json.encode(job) + b"\n",
        capture_output=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (1, b"")
    assert ran.stdout.startswith(b"PostgreSQL cannot be used")
