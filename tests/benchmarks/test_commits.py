"""The benchmarks see every way in which an end is stored."""

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from coupon_clock.testing import TestApplication
from examples import NOON, a_template, terminate

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # benchmarks import each other by name

from commits import Commits

PAGE, EACH_STREAM, DECIDED = "prepared, in a page", "prepared, each stream for itself", "loaded and decided"


@pytest.fixture
def commits(app: TestApplication) -> Commits:
    return Commits(app)


@pytest.fixture
def elsewhere(app: TestApplication) -> Iterator[psycopg.Connection]:
    with psycopg.connect(app.settings.database(), autocommit=True) as connection:
        yield connection


def counted(commits: Commits) -> dict[str, float]:
    return {figure.name: figure.value for figure in commits.figures("run") if figure.value}


def two_templates(app: TestApplication) -> tuple[UUID, UUID]:
    one, other = (app.execute(a_template()).template_id for _ in range(2))
    return one, other


def test_a_prepared_end_is_counted_with_its_cause(app: TestApplication, commits: Commits):
    two_templates(app)
    app.clock.set(NOON)

    app.runtime.deadlines.handle_due([], "reconciler")

    assert counted(commits) == {f"run: {PAGE}, cause reconciler": 2}
    commits.wait_for(2, NOON)


def test_an_end_that_had_to_be_decided_is_counted_as_such(
    app: TestApplication, commits: Commits, elsewhere: psycopg.Connection
):
    one, _ = two_templates(app)
    elsewhere.execute("UPDATE coupon_clock.alarm SET ending = NULL WHERE stream_id = %s", (one,))
    app.clock.set(NOON)

    app.runtime.deadlines.handle_due([], "message")

    assert counted(commits) == {f"run: {PAGE}, cause message": 1, f"run: {DECIDED}, cause message": 1}
    commits.wait_for(2, NOON)


def test_ends_beside_a_writer_that_locks_no_alarm_are_counted_as_such(
    app: TestApplication, commits: Commits, elsewhere: psycopg.Connection
):
    one, _ = two_templates(app)
    app.clock.set(NOON)
    insert = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, 't', 's')"

    with elsewhere.transaction(force_rollback=True):
        elsewhere.execute(insert, (one,))
        app.runtime.deadlines.handle_due([], "reconciler")

    assert counted(commits) == {f"run: {EACH_STREAM}, cause reconciler": 1}


def test_an_end_by_a_command_is_counted_too(app: TestApplication, commits: Commits):
    one, _ = two_templates(app)

    app.execute(terminate(template_id=one))

    assert counted(commits) == {f"run: {DECIDED}, cause command": 1}


def test_an_end_in_a_way_that_is_not_counted_fails_the_run(
    app: TestApplication, commits: Commits, elsewhere: psycopg.Connection
):
    two_templates(app)
    app.clock.set(NOON)
    app.runtime.deadlines.handle_due([], "reconciler")
    insert = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 1, %s, 's')"
    elsewhere.execute(insert, (uuid4(), "CouponTemplate.Ended"))

    with pytest.raises(AssertionError, match="not counted"):
        commits.wait_for(2, NOON)
