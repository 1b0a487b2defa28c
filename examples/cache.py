"""A cache that forgets a template when something happened to it: `app.follow` with a durable checkpoint.

At least once and in order: forgetting twice is harmless, and nothing is missed while this was down. Nothing is kept
before `run`: nobody would forget it.
"""

from threading import Event as StopEvent
from threading import Lock
from uuid import UUID

from coupon_clock import Application, Envelope, Event, TemplateView


class TemplateCache:
    """`name` keeps the place in the log: one for each process that has a cache of its own."""

    def __init__(self, app: Application, name: str = "template-cache") -> None:
        self._app = app
        self._name = name
        self._views: dict[UUID, TemplateView] = {}
        self._seen: int | None = None  # every event after this position will come to `forget`
        self._lock = Lock()

    def get(self, shop_number: int, template_id: UUID) -> TemplateView:
        """Judge it by the time before use: it was active or over as of `as_of`."""
        view = self._views.get(template_id)
        if view is None or view.shop_number != shop_number:
            seen = self._seen
            view = self._app.find(shop_number, template_id, at_least=seen)
            with self._lock:
                if seen is not None and seen == self._seen:  # else it may have changed since it was read
                    self._views[template_id] = view
        return view

    def forget(self, envelopes: list[Envelope[Event]]) -> None:
        """The handler. From now on `get` waits for a read model that has seen these events."""
        with self._lock:
            self._seen = max(self._seen or 0, envelopes[-1].position)
            for envelope in envelopes:
                self._views.pop(envelope.stream_id, None)

    def run(self, stop: StopEvent) -> None:
        """Begins at the end of the log, or where `name` was left, if that is earlier."""
        self._seen = self._app.end_of_log()
        self._app.follow(self._name, self.forget, start=self._seen, stop=stop)
