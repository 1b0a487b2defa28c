"""Processes that run loops can be seen in the database, also those that can no longer tell."""

from datetime import timedelta

from coupon_clock.infrastructure import processes
from coupon_clock.infrastructure.loop import Ticks
from coupon_clock.infrastructure.processes import Heartbeat, all_processes
from waiting import eventually


def listed(app):
    with app.database.connection() as connection:
        return all_processes(connection, app.database.schema)


def test_a_process_is_listed_while_it_runs_and_gone_after_a_clean_stop(live):
    with live.running(["relay", "consumer"]):
        eventually(lambda: listed(live))
        (process,) = listed(live)
        assert process.roles == ["relay", "consumer"]
        assert not process.is_dead
    assert listed(live) == []


def test_a_process_that_ends_without_a_word_is_shown_as_dead_and_forgotten_after_a_day(app):
    Heartbeat(app.database, ["relay"], Ticks()).run_once()
    with app.database.connection() as connection:
        connection.execute("UPDATE coupon_clock.process SET heartbeat_at = heartbeat_at - interval '31 s'")
    assert [process.is_dead for process in listed(app)] == [True]

    other = Heartbeat(app.database, ["consumer"], Ticks())
    other.run_once()
    assert len(listed(app)) == 2
    with app.database.connection() as connection:
        connection.execute(
            "UPDATE coupon_clock.process SET heartbeat_at = heartbeat_at - interval '1 day' WHERE roles = '{relay}'"
        )
    other.run_once()
    assert [process.roles for process in listed(app)] == [["consumer"]]


def test_a_loop_that_is_in_one_tick_for_long_is_named(app, monkeypatch):
    ticks = Ticks()
    ticks.began("relay")
    ticks.began("reconciler")
    ticks.ended("reconciler")
    monkeypatch.setattr(processes, "HUNG_AFTER_S", 0.0)
    heartbeat = Heartbeat(app.database, ["relay", "reconciler"], ticks)
    eventually(lambda: heartbeat.run_once() is not None and listed(app)[0].hung == ["relay"], within=5)


def test_what_beats_has_a_row_for_each_process(app):
    assert timedelta(seconds=2 * processes.HEARTBEAT_S) < processes.DEAD_AFTER
    for _ in range(3):
        Heartbeat(app.database, ["relay"], Ticks()).run_once()
    assert len({process.instance for process in listed(app)}) == 3
