"""Every public call refuses an argument that it cannot take, by name, before it does anything."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from coupon_clock.app import Application, CouponClockError, RebuildOptions, Settings, Validity
from coupon_clock.domain.errors import InvalidArgument, InvalidCommand
from coupon_clock.maintenance.verify.rows import Part
from coupon_clock.testing import throw_away_database
from examples import TEMPLATE, terminate

ODD = [
    *(None, True, 1.5, -1, 0, 2**70, float("nan"), float("inf"), "", "\0", "\ud800", b"x", [None], {}, object()),
    *(UUID(int=0), datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), print),  # noqa: DTZ001
]

Call = Callable[[Application, Any], object]
CALLS: dict[str, Call] = {
    "execute": lambda app, odd: app.execute(odd),
    "execute, connection": lambda app, odd: app.execute(terminate(TEMPLATE), connection=odd),
    "execute_many": lambda app, odd: app.execute_many(odd),
    "find, shop_number": lambda app, odd: app.find(odd, TEMPLATE),
    "find, template_id": lambda app, odd: app.find(1, odd),
    "find, at_least": lambda app, odd: app.find(1, TEMPLATE, at_least=odd, timeout=0.01),
    "find, timeout": lambda app, odd: app.find(1, TEMPLATE, timeout=odd),
    "page, shop_number": lambda app, odd: app.page(odd),
    "page, filters": lambda app, odd: app.page(1, odd),
    "page, after": lambda app, odd: app.page(1, after=odd),
    "page, limit": lambda app, odd: app.page(1, limit=odd),
    "shop_months, before": lambda app, odd: app.shop_months(1, before=odd),
    "history": lambda app, odd: app.history(1, odd),
    "state_at, shop_number": lambda app, odd: app.state_at(odd, TEMPLATE, 1),
    "state_at, at": lambda app, odd: app.state_at(1, TEMPLATE, odd),
    "is_usable, at": lambda app, odd: app.is_usable(1, TEMPLATE, at=odd),
    "running, roles": lambda app, odd: begun(app.running(odd)),
    "running, broker": lambda app, odd: begun(app.running(["relay", "consumer"], odd)),
    "open": lambda app, odd: Application.open(odd),
    "migrate": lambda app, odd: Application.migrate(odd),
    "planned_migration": lambda app, odd: Application.planned_migration(odd),
    "roles_sql": lambda app, odd: Application.roles_sql(odd),
    "Validity.days": lambda app, odd: Validity.days(odd, odd, UTC),
    "rebuild": lambda app, odd: app.maintenance.rebuild(odd),
    "rebuild, options": lambda app, odd: app.maintenance.rebuild(options=odd),
    "rebuild, jobs": lambda app, odd: app.maintenance.rebuild(options=RebuildOptions(jobs=odd)),
    "rebuild, events_per_s": lambda app, odd: app.maintenance.rebuild(options=RebuildOptions(events_per_s=odd)),
    "rebuild, takeover_s": lambda app, odd: app.maintenance.rebuild(options=RebuildOptions(takeover_s=odd)),
    "rebuild, progress": lambda app, odd: app.maintenance.rebuild(progress=odd),
    "dry_run": lambda app, odd: app.maintenance.dry_run(odd),
    "verify": lambda app, odd: list(app.maintenance.verify(odd)),
    "verify_promise": lambda app, odd: app.maintenance.verify_promise(odd),
    "explain": lambda app, odd: app.maintenance.explain(odd),
    "verify_rows": lambda app, odd: list(app.maintenance.verify_rows(odd)),
    "verify_alarms, since": lambda app, odd: list(app.maintenance.verify_alarms(Part(since=odd))),
    "verify_alarms, percent": lambda app, odd: list(app.maintenance.verify_alarms(Part(percent=odd))),
    "rejected": lambda app, odd: app.maintenance.rejected(odd),
    "retry_rejected": lambda app, odd: app.maintenance.retry_rejected(odd),
    "drop_rejected": lambda app, odd: app.maintenance.drop_rejected(odd),
    "rearm": lambda app, odd: app.maintenance.rearm(odd),
}
"""Each call, with one argument open."""

TAKEN: dict[str, list[object]] = {
    "execute, connection": [None],
    "find, at_least": [None, 0],
    "find, timeout": [1.5, 0],
    "page, shop_number": [],
    "page, after": [None, UUID(int=0)],
    "page, limit": [2**70],
    "shop_months, before": [None],
    "running, broker": [None],
    "rebuild, jobs": [None],
    "rebuild, events_per_s": [None, 1.5],
    "rebuild, takeover_s": [1.5, 0],
    "rebuild, progress": [print],
    "execute_many": [[None]],
    "verify_promise": [None, 0],
    "explain": [UUID(int=0)],
    "verify_rows": [None],
    "verify_alarms, since": [None, 0],
    "verify_alarms, percent": [None, 1.5, 0],
    "drop_rejected": [None],
    "open": [None],
    "rearm": [print],
}
"""What a call takes of all that."""


def begun(running: Any) -> None:
    with running:
        pass


@pytest.fixture(scope="module")
def opened(postgres) -> Iterator[Application]:
    with throw_away_database(postgres.url) as url, Application.open(Settings.load(database_url=url)) as app:
        yield app


@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_cannot_take_is_refused_in_its_own_words(opened, name):
    for odd in ODD:
        if not any(type(odd) is type(taken) and odd == taken for taken in TAKEN.get(name, [])):
            with pytest.raises(CouponClockError):
                CALLS[name](opened, odd)


def test_each_of_many_commands_is_refused_by_itself(opened):
    assert {type(each) for each in opened.execute_many(ODD)} == {InvalidCommand}


def test_wrong_options_of_a_rebuild_are_all_named_at_once(opened):
    with pytest.raises(InvalidArgument) as refused:
        opened.maintenance.rebuild(options=RebuildOptions(jobs=0, events_a_chunk=-1, resume=1))
    assert [problem.field for problem in refused.value.problems] == ["resume", "jobs", "events_a_chunk"]


def test_a_template_that_is_not_there_is_no_wrong_argument(opened):
    with pytest.raises(CouponClockError) as refused:
        opened.find(1, uuid4())
    assert not isinstance(refused.value, InvalidArgument)
