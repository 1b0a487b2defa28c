"""examples/cache.py"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest

from coupon_clock import CreateCouponTemplate
from coupon_clock.testing import given
from examples import SHOP, a_template, increase
from programs import example, in_background
from waiting import eventually


class TestCache:
    @pytest.fixture
    def cache(self, app):
        return example("cache").TemplateCache(app)

    @pytest.fixture
    def template(self, app) -> CreateCouponTemplate:
        """Its rows are up to date, and so they are after `increased`."""
        template = a_template(stock=10)
        given(app, template)
        app.run_due()
        return template

    def increased(self, app, template) -> None:
        given(app, increase(template.template_id, by=5))
        app.run_due()

    def stock(self, cache, template) -> int:
        return cache.get(SHOP, template.template_id).stock

    def test_what_happened_is_forgotten_and_the_rest_is_kept(self, app, cache, template):
        with in_background(cache.run):
            eventually(lambda: follows(app, "template-cache"))
            assert cache.get(SHOP, template.template_id) is cache.get(SHOP, template.template_id)
            self.increased(app, template)
            eventually(lambda: self.stock(cache, template) == 15)

    def test_what_was_read_before_it_follows_is_not_kept(self, app, cache, template):
        assert self.stock(cache, template) == 10
        self.increased(app, template)
        with in_background(cache.run):
            eventually(lambda: follows(app, "template-cache"))
            assert self.stock(cache, template) == 15

    def test_what_happens_just_before_a_view_is_kept_is_not_missed(self, app, cache, template):
        def increased_and_forgotten() -> None:
            self.increased(app, template)
            forgetting = Thread(target=cache.forget, args=(app.history(SHOP, template.template_id),))
            forgetting.start()
            forgetting.join(timeout=0.2)  # it may have to wait until the view is kept

        cache.forget(app.history(SHOP, template.template_id))
        cache._views = Late(increased_and_forgotten)
        assert self.stock(cache, template) == 10
        eventually(lambda: self.stock(cache, template) == 15)

    def test_rows_that_are_behind_when_it_starts_again_are_not_kept(self, app, cache, template):
        with in_background(cache.run):
            eventually(lambda: follows(app, "template-cache"))
            outcome = app.execute(increase(template.template_id, by=5))
            eventually(lambda: follows(app, "template-cache", outcome.position))

        again = example("cache").TemplateCache(app)
        with in_background(again.run), ThreadPoolExecutor() as threads:
            eventually(lambda: again._seen)
            reading = threads.submit(self.stock, again, template)
            app.run_due()
            assert (reading.result(), self.stock(again, template)) == (15, 15)


class Late(dict):
    """Something happens once, at the last moment before anything is stored here."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.to_happen = [happens]

    def __setitem__(self, key, value) -> None:
        if self.to_happen:
            self.to_happen.pop()()
        super().__setitem__(key, value)


def follows(app, name: str, up_to: int = 0) -> bool:
    with app.database.connection() as connection:
        found = connection.execute(
            "SELECT 1 FROM coupon_clock.checkpoint WHERE name = %s AND position >= %s", (name, up_to)
        )
        return found.fetchone() is not None
