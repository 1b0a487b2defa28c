"""The life of a coupon template through the public API, on a clock that is turned by hand."""

from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from coupon_clock.domain.errors import (
    CommandConflict,
    CouponTemplateNotFound,
    CouponTemplateOver,
    InvalidCommand,
)
from coupon_clock.domain.events import Ended, EndReason, ValidityChanged
from coupon_clock.projections.engine.projection import ReadModelBehind
from coupon_clock.testing import given, then, then_nothing, then_refused, when
from examples import (
    EVENING,
    EXPIRED_AT_NOON,
    MICROSECOND,
    MORNING,
    NOON,
    OTHER_SHOP,
    SHOP,
    TERMINATED_IN_THE_MORNING,
    a_template,
    change,
    expire,
    increase,
    terminate,
)

EXPIRED_IN_THE_EVENING = Ended(SHOP, EndReason.EXPIRED, EVENING)


def test_a_template_ends_at_its_end_and_not_a_microsecond_earlier(app):
    template = a_template(valid_until=NOON)
    given(app, template)

    app.clock.set(NOON - MICROSECOND)
    app.run_due()
    then_nothing(app)
    assert app.is_usable(SHOP, template.template_id)

    app.clock.set(NOON)
    assert not app.is_usable(SHOP, template.template_id)
    app.run_due()
    then(app, EXPIRED_AT_NOON)


def test_an_end_moved_later_ignores_the_old_message(app):
    template = a_template(valid_until=NOON)
    given(app, template)
    app.clock.set(NOON - 5 * MICROSECOND)
    app.run_due()
    when(app, change(template.template_id, until=EVENING))
    then(app, ValidityChanged(SHOP, MORNING, EVENING))

    app.clock.set(NOON)
    app.run_due()
    then_nothing(app)

    app.clock.set(EVENING)
    app.run_due()
    then(app, EXPIRED_IN_THE_EVENING)


def test_an_end_moved_earlier_after_its_message_was_sent_is_kept(app):
    template = a_template(valid_until=EVENING)
    given(app, template)
    app.run_due()
    given(app, change(template.template_id, until=NOON))

    app.clock.set(NOON)
    app.run_due()
    then(app, EXPIRED_AT_NOON)


def test_a_template_that_lives_three_months_ends_once(app):
    end = MORNING + timedelta(days=90)
    given(app, a_template(valid_until=end))

    app.clock.advance(days=89)
    app.run_due()
    then_nothing(app)
    app.clock.advance(days=3)
    app.run_due()
    then(app, Ended(SHOP, EndReason.EXPIRED, end))


def test_a_terminated_template_is_over_at_once_and_stays_terminated_at_its_end(app):
    template = a_template()
    given(app, template)
    when(app, terminate(template.template_id))
    then(app, TERMINATED_IN_THE_MORNING)
    assert not app.is_usable(SHOP, template.template_id)

    app.clock.set(EVENING)
    app.run_due()
    then_nothing(app)


def test_terminating_what_is_over_records_that_it_expired_at_its_end(app):
    template = a_template(valid_until=NOON)
    given(app, template)
    app.clock.set(EVENING)

    when(app, terminate(template.template_id))
    then(app, EXPIRED_AT_NOON)


def test_a_repeated_command_changes_nothing_and_returns_its_first_outcome(app):
    template = a_template(stock=10)
    first = increase(template.template_id, by=5)
    created, increased = app.execute(template), app.execute(first)
    app.execute(increase(template.template_id, by=7))

    assert app.execute(first) == increased
    assert app.execute(template) == created
    assert len(app.history(SHOP, template.template_id)) == 3


def test_a_repeated_command_has_its_first_outcome_also_after_the_end(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    first = increase(template.template_id)
    increased = app.execute(first)
    app.clock.set(EVENING)
    app.run_due()

    assert app.execute(first) == increased


def test_the_same_id_with_other_content_is_refused(app):
    template = a_template()
    first = increase(template.template_id, by=5)
    given(app, template, first)

    when(app, increase(template.template_id, by=6, command_id=first.command_id))
    then_refused(app, CommandConflict)
    when(app, a_template(template_id=template.template_id, name="Another"))
    then_refused(app, CommandConflict)


def test_another_shop_finds_nothing_not_even_with_a_known_command(app):
    template = a_template()
    known = increase(template.template_id)
    given(app, template, known)

    for command in (
        increase(template.template_id, shop_number=OTHER_SHOP),
        increase(template.template_id, shop_number=OTHER_SHOP, command_id=known.command_id),
        terminate(template.template_id, shop_number=OTHER_SHOP),
    ):
        when(app, command)
        then_refused(app, CouponTemplateNotFound)
    with pytest.raises(CouponTemplateNotFound):
        app.history(OTHER_SHOP, template.template_id)
    with pytest.raises(CouponTemplateNotFound):
        app.is_usable(OTHER_SHOP, template.template_id)


@pytest.mark.parametrize("version", [None, 0, 1, 2, 7])
def test_creating_what_another_shop_has_is_refused_in_one_sentence_whatever_it_expects(app, version):
    theirs = a_template()
    given(app, theirs, increase(theirs.template_id))

    ours = a_template(template_id=theirs.template_id, shop_number=OTHER_SHOP, expected_version=version)
    when(app, ours)
    assert then_refused(app, CommandConflict).reason == "the template exists with other content"
    when(app, replace(ours, command_id=theirs.command_id))
    assert then_refused(app, CommandConflict).reason == "the template exists with other content"


def test_what_is_no_command_of_a_shop_is_refused_by_name_and_spoils_no_other(app):
    template = a_template()
    for stranger in (None, "terminate", expire(template.template_id)):
        when(app, stranger)
        assert [problem.field for problem in then_refused(app, InvalidCommand).problems] == ["command"]
    outcomes = app.execute_many(each for each in (None, template, expire(template.template_id)))
    assert [type(outcome).__name__ for outcome in outcomes] == ["InvalidCommand", "Outcome", "InvalidCommand"]


def test_a_command_that_expects_another_version_is_refused(app):
    template = a_template()
    given(app, template, increase(template.template_id, expected_version=1))

    when(app, increase(template.template_id, expected_version=1))
    then_refused(app, CommandConflict)


def test_several_commands_on_one_template_in_a_chunk_are_decided_in_turn(app):
    template = a_template(stock=10)
    outcomes = app.execute_many(
        [template, increase(template.template_id, by=5), increase(template.template_id, by=7), template]
    )

    assert [outcome.version for outcome in outcomes] == [1, 2, 3, 1]
    app.run_due()
    assert app.find(SHOP, template.template_id, at_least=outcomes[2].position).stock == 22


def test_one_bad_command_spoils_no_other(app):
    good, bad, late = a_template(), a_template(name=" "), a_template()
    outcomes = app.execute_many([good, bad, increase(bad.template_id), late])

    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Outcome",
        "InvalidCommand",
        "CouponTemplateNotFound",
        "Outcome",
    ]


def test_what_is_over_refuses_changes(app):
    template = a_template(valid_until=NOON)
    given(app, template)
    app.clock.set(NOON)

    when(app, increase(template.template_id))
    then_refused(app, CouponTemplateOver)
    when(app, change(template.template_id, until=EVENING))
    then_refused(app, CouponTemplateOver)


def test_all_broken_rules_are_named_at_once(app):
    when(app, a_template(name="", stock=0, valid_from=NOON.replace(tzinfo=None), source="friend"))
    refusal = then_refused(app, InvalidCommand)
    assert [problem.field for problem in refusal.problems] == ["name", "source", "valid_from", "stock"]


def test_the_read_model_shows_the_end_and_its_pages_walk_a_shop(app):
    templates = [a_template(valid_until=NOON if n % 2 else EVENING) for n in range(5)]
    app.execute_many([*templates, a_template(shop_number=OTHER_SHOP)])
    app.clock.set(NOON)
    app.run_due()

    first = app.page(SHOP, limit=3)
    second = app.page(SHOP, after=first.after, limit=3)
    assert [view.template_id for view in (*first.views, *second.views)] == sorted(t.template_id for t in templates)
    assert second.after is None
    assert sorted(view.state for view in (*first.views, *second.views)) == ["active"] * 3 + ["over"] * 2


def test_a_row_is_judged_by_the_time_however_far_behind_the_read_model_is(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.run_due()

    app.clock.set(NOON - MICROSECOND)
    assert app.find(SHOP, template.template_id).is_usable
    app.clock.set(NOON)
    assert app.find(SHOP, template.template_id).state == "over"


def test_reading_what_is_not_projected_yet_says_so(app):
    outcome = app.execute(a_template())
    with pytest.raises(ReadModelBehind):
        app.find(SHOP, outcome.template_id, at_least=outcome.position, timeout=0)


def test_what_a_template_was_at_a_position_or_a_time_is_told_from_the_log(app):
    template = a_template()
    created = app.execute(template)
    app.execute(a_template())  # others lie between
    app.clock.advance(hours=1)
    increased = app.execute(increase(template.template_id, by=5))
    app.clock.set(EVENING)
    app.run_due()

    def at(when: int | datetime) -> tuple[int, str, int]:
        view = app.state_at(SHOP, template.template_id, when)
        return view.stock, view.state, view.version

    assert at(created.position) == at(increased.position - 1) == at(MORNING) == (100, "active", 1)
    assert at(increased.position) == at(MORNING + timedelta(hours=1)) == (105, "active", 2)
    assert at(NOON - MICROSECOND) == (105, "active", 2)
    assert at(NOON) == (105, "over", 2)  # its end is recorded later
    assert at(EVENING) == at(app.end_of_log()) == (105, "over", 3)
    for too_early in (created.position - 1, 0, MORNING - MICROSECOND):
        with pytest.raises(CouponTemplateNotFound):
            at(too_early)
    with pytest.raises(CouponTemplateNotFound):
        app.state_at(OTHER_SHOP, template.template_id, EVENING)


def test_history_tells_who_did_what_and_why(app):
    template = a_template(valid_until=NOON, actor="anna")
    app.execute(template)
    app.clock.set(NOON)
    app.run_due()

    created, ended = app.history(SHOP, template.template_id)
    assert (created.actor, created.cause, created.version, created.recorded_at) == ("anna", "command", 1, MORNING)
    assert (ended.actor, ended.version, ended.recorded_at) == (None, 2, NOON)
    assert ended.cause in ("message", "reconciler")
