"""The given / when / then of coupon_clock.testing fails where it should."""

import pytest

from coupon_clock.domain.errors import CouponTemplateNotFound, CouponTemplateOver, InvalidCommand
from coupon_clock.domain.events import StockIncreased
from coupon_clock.testing import given, then, then_nothing, then_refused, when
from examples import EXPIRED_AT_NOON, NOON, SHOP, a_template, created, increase, terminate


def test_what_was_given_is_no_news(app):
    given(app, a_template())
    then_nothing(app)


def test_a_refused_given_is_raised(app):
    with pytest.raises(InvalidCommand):
        given(app, a_template(stock=0))


def test_then_wants_all_that_happened_and_no_other(app):
    template = a_template(template_id=created().template_id)
    when(app, template)
    when(app, increase(template.template_id, by=5))
    then(app, created(), StockIncreased(SHOP, 5))

    when(app, increase(template.template_id, by=7))
    with pytest.raises(AssertionError, match="by=7"):
        then_nothing(app)


def test_then_is_not_content_with_something_else(app):
    when(app, a_template())
    with pytest.raises(AssertionError, match="expired"):
        then(app, EXPIRED_AT_NOON)


def test_then_fails_where_the_command_was_refused(app):
    when(app, increase(a_template().template_id))
    with pytest.raises(AssertionError, match="There is no coupon template"):
        then_nothing(app)


def test_then_refused_wants_that_refusal_and_has_it_once(app):
    with pytest.raises(AssertionError, match="None, not CouponTemplateOver"):
        then_refused(app, CouponTemplateOver)
    template = a_template(valid_until=NOON)
    given(app, template)
    app.clock.set(NOON)
    when(app, increase(template.template_id))
    with pytest.raises(AssertionError, match="not CouponTemplateNotFound"):
        then_refused(app, CouponTemplateNotFound)
    when(app, increase(template.template_id))
    assert then_refused(app, CouponTemplateOver).template_id == template.template_id
    when(app, terminate(template.template_id))
    then(app, EXPIRED_AT_NOON)
