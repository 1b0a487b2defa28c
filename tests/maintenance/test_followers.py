"""What follows the log as operators see it, and the ways on for one that is stopped."""

import json
from threading import Event

import pytest

from command_line import coupon_clock
from coupon_clock.app import Application
from coupon_clock.domain.errors import InvalidArgument
from coupon_clock.infrastructure.event_store.lease import Lease
from coupon_clock.maintenance.followers import Follower, UnknownFollower
from examples import ending_in
from history import append_unreadable, run_sql
from test_follow import following
from waiting import eventually


def follower(app: Application, name: str = "mails") -> Follower:
    (found,) = [each for each in app.maintenance.followers() if each.name == name]
    return found


def is_stopped(app: Application) -> bool:
    return any(each.is_stopped for each in app.maintenance.followers())


def test_each_projection_and_follower_is_listed_with_how_far_it_is(live):
    live.execute_many([ending_in(3600), ending_in(3600)])
    seen: list[object] = []
    with following(live, "mails", seen.extend):
        eventually(lambda: len(seen) == 2)
        listed = {each.name: each for each in live.maintenance.followers()}

    assert {name: (each.kind, each.position, each.behind) for name, each in listed.items()} == {
        "coupon_template": ("projection", 0, 2),
        "shop_month": ("projection", 0, 2),
        "mails": ("follower", 2, 0),
    }
    assert listed["mails"].held_by is not None
    assert listed["mails"].behind_s is None
    assert listed["shop_month"].behind_s >= 0


def test_a_batch_that_takes_long_shows_since_when_it_is_in_work(live):
    lease = Lease(live.database, "mails", patience_s=0.3)
    run_sql(
        live.settings.database_url.get_secret_value(),
        "INSERT INTO coupon_clock.checkpoint (name, kind, position) VALUES ('mails', 'follower', 0)",
    )
    lease.take()
    assert follower(live).working_since is None
    with lease.kept():
        eventually(lambda: follower(live).working_since)
        since = follower(live).working_since
        before = renewals(live)
        eventually(lambda: renewals(live) > before)
        assert abs((follower(live).working_since - since).total_seconds()) < 0.1
    lease.take()
    assert follower(live).working_since is None
    lease.release()


def renewals(app: Application) -> int:
    with app.database.connection() as connection:
        (count,) = connection.execute("SELECT renewals FROM coupon_clock.lease WHERE name = 'mails'").fetchone()
    return count


def test_an_event_that_cannot_be_read_stops_a_follower_until_it_is_skipped(live, database_url):
    live.execute(ending_in(3600))
    append_unreadable(database_url)
    live.execute(ending_in(3600))
    seen: list[int] = []
    with following(live, "mails", lambda envelopes: seen.extend(each.position for each in envelopes)):
        eventually(lambda: is_stopped(live))
        listed = coupon_clock("followers", "list", database_url=database_url)
        assert (seen, follower(live).position) == ([1], 1)
        assert listed.returncode == 1
        assert "mails  follower at 1, 2 behind" in listed.stdout
        assert "at position 2, cannot be read by this version" in " ".join(listed.stdout.split())

        skip = coupon_clock(
            "followers", "skip", "mails", "2", "--by", "ada", "--reason", "written by hand", database_url=database_url
        )
        assert skip.returncode == 0, skip.stderr
        eventually(lambda: seen == [1, 3])
        eventually(lambda: not is_stopped(live))

    told = coupon_clock("followers", "skipped", "mails", "--json", database_url=database_url)
    (skipped,) = map(json.loads, told.stdout.splitlines())
    assert (skipped["position"], skipped["skipped_by"], skipped["reason"]) == (2, "ada", "written by hand")


def test_nothing_but_skipped_events_calls_no_handler_and_moves_the_checkpoint(live, database_url):
    append_unreadable(database_url)
    append_unreadable(database_url)
    calls: list[object] = []
    with following(live, "mails", calls.append):
        eventually(lambda: is_stopped(live))
        for position in (2, 1):
            live.maintenance.skip_event("mails", position, "ada", "written by hand")
        eventually(lambda: follower(live).position == 2)
    assert calls == []
    assert follower(live).skipped == 2


def test_an_event_on_which_the_handler_raises_can_be_skipped_too(live):
    live.execute_many([ending_in(3600) for _ in range(3)])
    seen: list[int] = []

    def handler(envelopes) -> None:
        for envelope in envelopes:
            if envelope.position == 2:
                raise ValueError("no such customer: secret@example.org")
        seen.extend(envelope.position for envelope in envelopes)

    with following(live, "mails", handler):
        eventually(lambda: is_stopped(live))
        assert follower(live).stopped_by == "its handler raised ValueError"
        live.maintenance.skip_event("mails", 2, "ada", "a customer of the old shop")
        eventually(lambda: seen == [1, 3])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"position": 0}, "position must be 1"),
        ({"position": "2"}, "position must be int, not str"),
        ({"position": 9}, "position is no event of the log"),
        ({"position": 1}, "position is behind the checkpoint, 1"),
        ({"follower": "shop_month"}, "name is a projection"),
        ({"follower": ""}, "name must have 1 to 100 characters"),
        ({"reason": ""}, "reason must have 1 to 500 characters"),
        ({"reason": "a\x1b[2J"}, "reason must have visible characters"),
        ({"skipped_by": None}, "skipped_by must be str"),
    ],
)
def test_what_cannot_be_skipped_is_refused(live, given, problem):
    live.execute_many([ending_in(3600), ending_in(3600)])
    live.follow("mails", list.copy, start=1, stop=once_it_is_made(live))
    arguments = {"follower": "mails", "position": 2, "skipped_by": "ada", "reason": "a test"} | given
    with pytest.raises(InvalidArgument) as refused:
        live.maintenance.skip_event(*arguments.values())
    assert problem in str(refused.value)


def once_it_is_made(app: Application) -> Event:
    with app.database.connection() as connection:
        connection.execute("INSERT INTO coupon_clock.checkpoint (name, kind, position) VALUES ('mails', 'follower', 1)")
    stop = Event()
    stop.set()
    return stop


def test_a_name_that_no_follower_has_is_told(live, database_url):
    for call in (
        lambda: live.maintenance.skip_event("mail", 1, "ada", "a test"),
        lambda: live.maintenance.restart_follower("mail", 0),
        lambda: live.maintenance.forget_follower("mail"),
    ):
        with pytest.raises(UnknownFollower, match="followers list"):
            call()
    done = coupon_clock("followers", "restart", "mail", "soon", database_url=database_url)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_checkpoint_beyond_the_log_stops_that_follower_alone_until_it_is_restarted(live, settings, database_url):
    live.execute(ending_in(3600))
    run_sql(
        database_url,
        "INSERT INTO coupon_clock.checkpoint (name, kind, position) VALUES ('mails', 'follower', 3)",
    )
    mails: list[int] = []
    cache: list[int] = []
    with (
        Application.open(settings) as app,
        following(app, "mails", lambda envelopes: mails.extend(each.position for each in envelopes)),
        following(app, "cache", lambda envelopes: cache.extend(each.position for each in envelopes)),
    ):
        app.execute_many([ending_in(3600) for _ in range(5)])
        eventually(lambda: cache == [1, 2, 3, 4, 5, 6])
        assert (mails, follower(app).beyond_log, follower(app).is_stopped) == ([], True, True)

        restarted = coupon_clock("followers", "restart", "mails", "1", database_url=database_url)
        assert restarted.returncode == 0, restarted.stderr
        eventually(lambda: mails == [2, 3, 4, 5, 6])


def test_a_follower_that_is_running_can_be_sent_back_and_to_the_end(live):
    live.execute_many([ending_in(3600) for _ in range(3)])
    seen: list[int] = []
    with following(live, "mails", lambda envelopes: seen.extend(each.position for each in envelopes)):
        eventually(lambda: seen == [1, 2, 3])
        assert live.maintenance.restart_follower("mails", 1) == 1
        live.execute(ending_in(3600))
        eventually(lambda: seen[-3:] == [2, 3, 4])
    assert live.maintenance.restart_follower("mails", "now") == 4


def test_a_follower_that_is_forgotten_is_listed_no_more_and_begins_anew(live):
    live.execute(ending_in(3600))
    seen: list[object] = []
    with following(live, "mails", seen.extend):
        eventually(lambda: len(seen) == 1)
    live.maintenance.forget_follower("mails")
    assert "mails" not in [each.name for each in live.maintenance.followers()]
    with following(live, "mails", seen.extend):
        eventually(lambda: len(seen) == 2)
