"""The life of a coupon template through the public API, on a clock that is turned by hand."""

import pytest

from coupon_clock.domain.errors import (
    CommandConflict,
    CouponTemplateNotFound,
    CouponTemplateOver,
    InvalidCommand,
    ReadModelBehind,
)
from coupon_clock.domain.events import Ended, EndReason
from coupon_clock.testing import TurnedApplication
from examples import EVENING, MICROSECOND, MORNING, NOON, OTHER_SHOP, SHOP, a_template, change, increase, terminate


def then_ended(app: TurnedApplication, template, reason: EndReason, at) -> None:
    ended = [e.event for e in app.history(SHOP, template.template_id) if isinstance(e.event, Ended)]
    assert ended == [Ended(SHOP, reason, at)]


def then_not_ended(app: TurnedApplication, template) -> None:
    assert not any(isinstance(e.event, Ended) for e in app.history(SHOP, template.template_id))


def test_a_template_ends_at_its_end_and_not_a_microsecond_earlier(app):
    template = a_template(valid_until=NOON)
    app.execute(template)

    app.clock.set(NOON - MICROSECOND)
    app.run_due()
    then_not_ended(app, template)
    assert app.is_usable(SHOP, template.template_id)

    app.clock.set(NOON)
    assert not app.is_usable(SHOP, template.template_id)
    app.run_due()
    then_ended(app, template, EndReason.EXPIRED, NOON)


def test_an_end_moved_later_ignores_the_old_message(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.clock.set(NOON - 5 * MICROSECOND)
    app.run_due()
    app.execute(change(template.template_id, until=EVENING))

    app.clock.set(NOON)
    app.run_due()
    then_not_ended(app, template)

    app.clock.set(EVENING)
    app.run_due()
    then_ended(app, template, EndReason.EXPIRED, EVENING)


def test_an_end_moved_earlier_after_its_message_was_sent_is_kept(app):
    template = a_template(valid_until=EVENING)
    app.execute(template)
    app.run_due()
    app.execute(change(template.template_id, until=NOON))

    app.clock.set(NOON)
    app.run_due()
    then_ended(app, template, EndReason.EXPIRED, NOON)


def test_a_terminated_template_is_over_at_once_and_stays_terminated_at_its_end(app):
    template = a_template()
    app.execute(template)
    app.execute(terminate(template.template_id))
    assert not app.is_usable(SHOP, template.template_id)

    app.clock.set(EVENING)
    app.run_due()
    then_ended(app, template, EndReason.TERMINATED, MORNING)


def test_terminating_what_is_over_records_that_it_expired_at_its_end(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.clock.set(EVENING)

    app.execute(terminate(template.template_id))
    then_ended(app, template, EndReason.EXPIRED, NOON)


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
    app.execute(template)
    first = increase(template.template_id, by=5)
    app.execute(first)

    with pytest.raises(CommandConflict):
        app.execute(increase(template.template_id, by=6, command_id=first.command_id))
    with pytest.raises(CommandConflict):
        app.execute(a_template(template_id=template.template_id, name="Another"))


def test_another_shop_finds_nothing_not_even_with_a_known_command(app):
    template = a_template()
    app.execute(template)
    known = increase(template.template_id)
    app.execute(known)

    for command in (
        increase(template.template_id, shop_number=OTHER_SHOP),
        increase(template.template_id, shop_number=OTHER_SHOP, command_id=known.command_id),
        terminate(template.template_id, shop_number=OTHER_SHOP),
    ):
        with pytest.raises(CouponTemplateNotFound):
            app.execute(command)
    with pytest.raises(CouponTemplateNotFound):
        app.history(OTHER_SHOP, template.template_id)
    with pytest.raises(CouponTemplateNotFound):
        app.is_usable(OTHER_SHOP, template.template_id)


def test_a_command_that_expects_another_version_is_refused(app):
    template = a_template()
    app.execute(template)
    app.execute(increase(template.template_id, expected_version=1))

    with pytest.raises(CommandConflict):
        app.execute(increase(template.template_id, expected_version=1))


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
    app.execute(template)
    app.clock.set(NOON)

    with pytest.raises(CouponTemplateOver):
        app.execute(increase(template.template_id))
    with pytest.raises(CouponTemplateOver):
        app.execute(change(template.template_id, until=EVENING))


def test_all_broken_rules_are_named_at_once(app):
    with pytest.raises(InvalidCommand) as refused:
        app.execute(a_template(name="", stock=0, valid_from=NOON.replace(tzinfo=None), source="friend"))

    assert [problem.field for problem in refused.value.problems] == ["name", "source", "valid_from", "stock"]


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


def test_history_tells_who_did_what_and_why(app):
    template = a_template(valid_until=NOON, actor="anna")
    app.execute(template)
    app.clock.set(NOON)
    app.run_due()

    created, ended = app.history(SHOP, template.template_id)
    assert (created.actor, created.cause, created.version, created.recorded_at) == ("anna", "command", 1, MORNING)
    assert (ended.actor, ended.version, ended.recorded_at) == (None, 2, NOON)
    assert ended.cause in ("message", "sweep")
