"""Every example runs."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from uuid import uuid4

import msgspec
import pytest
from fastapi.testclient import TestClient

from coupon_clock.app import CreateCouponTemplate
from coupon_clock.infrastructure.messaging.rocketmq.library import library
from coupon_clock.testing import given
from deadlines import eventually
from examples import SHOP, a_template, ending_in, increase, terminate

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def in_background(run, *arguments) -> Iterator[None]:
    stop = Event()
    thread = Thread(target=run, args=(*arguments, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)


class TestService:
    @pytest.fixture
    def client(self, database_url, monkeypatch) -> Iterator[TestClient]:
        monkeypatch.setenv("COUPON_CLOCK_DATABASE_URL", database_url)
        with TestClient(example("service").api) as client:
            yield client

    @pytest.fixture
    def url(self) -> str:
        return f"/shops/{SHOP}/templates/{uuid4()}"

    def content(self, **given) -> dict[str, object]:
        template = msgspec.to_builtins(ending_in(3600, **given))
        ids = ("command_id", "template_id", "shop_number", "actor", "expected_version")
        return {name: value for name, value in template.items() if name not in ids}

    def key(self) -> dict[str, str]:
        return {"Idempotency-Key": str(uuid4())}

    def test_a_template_is_created_read_and_ended(self, client, url):
        created = client.put(url, json=self.content(), headers=self.key())
        assert (created.status_code, created.headers["ETag"]) == (201, '"1"')

        found = client.get(url, params={"at_least": created.json()["position"]})
        assert (found.json()["state"], found.headers["ETag"]) == ("active", '"1"')

        ended = client.delete(url, headers=self.key())
        found = client.get(url, params={"at_least": ended.json()["position"]})
        assert (found.json()["state"], found.headers["ETag"]) == ("over", '"2"')

    def test_a_repeated_request_has_no_second_effect(self, client, url):
        client.put(url, json=self.content(stock=10), headers=self.key())
        key = self.key()
        first = client.post(url + "/stock", json={"by": 5}, headers=key)
        again = client.post(url + "/stock", json={"by": 5}, headers=key)

        assert (first.status_code, first.json()) == (again.status_code, again.json())
        assert client.get(url, params={"at_least": first.json()["position"]}).json()["stock"] == 15

    def test_refusals_have_their_status(self, client, url):
        assert client.get(url).status_code == 404
        assert client.put(url, json=self.content() | {"stock": "many"}, headers=self.key()).status_code == 422
        refused = client.put(url, json=self.content(name=" ", stock=0), headers=self.key())
        assert refused.status_code == 422
        assert [problem["field"] for problem in refused.json()["problems"]] == ["name", "stock"]

        client.put(url, json=self.content(), headers=self.key())
        stale = self.key() | {"If-Match": '"7"'}
        assert client.post(url + "/stock", json={"by": 5}, headers=stale).status_code == 409
        nonsense = self.key() | {"If-Match": "the last one"}
        assert client.post(url + "/stock", json={"by": 5}, headers=nonsense).status_code == 422
        whatever = self.key() | {"If-Match": "*"}
        assert client.post(url + "/stock", json={"by": 5}, headers=whatever).status_code == 200
        client.delete(url, headers=self.key())
        assert client.post(url + "/stock", json={"by": 5}, headers=self.key()).status_code == 409

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[1]",
            b'"\\ud800"',
            b'["\\ud800"]',
            b'{"\\ud800": 1}',
            b'{"by": "\\ud800"}',
            b'{"by": {"type": "\\ud800"}}',
            b'{"by": 5, "expected_version": "\\ud800"}',
            b'{"by": NaN}',
            b'{"by": 1e999}',
            b'{"by": ' + b"9" * 5_000 + b"}",
            b'{"by":' * 100_000,
            b"\xff",
        ],
        ids=lambda body: body[:30].decode(errors="replace"),
    )
    def test_whatever_is_no_command_is_refused_in_words(self, client, url, body):
        headers = self.key() | {"Content-Type": "application/json"}
        for answer in (
            client.post(url + "/stock", content=body, headers=headers),
            client.put(url, content=body, headers=headers),
        ):
            assert (answer.status_code, list(answer.json())) == (422, ["error"])

    def test_half_a_surrogate_pair_in_a_discount_is_refused(self, client, url):
        content = self.content() | {"discount": {"type": "\ud800"}}
        headers = self.key() | {"Content-Type": "application/json"}
        assert client.put(url, content=json.dumps(content), headers=headers).status_code == 422

    def test_its_own_page_lets_a_body_be_tried(self, client):
        paths = client.get("/openapi.json").json()["paths"].values()
        with_body = [method for path in paths for method, about in path.items() if "requestBody" in about]
        assert sorted(with_body) == ["post", "put", "put"]


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


def test_ends_are_announced_also_after_a_failure(live):
    template = ending_in(3600)
    live.execute_many([template, ending_in(3600)])
    live.execute(terminate(template.template_id))
    sent: list[bytes] = []
    failures = [ConnectionError("not now")]

    def publish(body: bytes) -> None:
        if failures:
            raise failures.pop()
        sent.append(body)

    with in_background(example("announce").announce, live, publish):
        eventually(lambda: sent)
    assert [json.loads(body)["template_id"] for body in sent] == [str(template.template_id)]
    assert json.loads(sent[0])["reason"] == "terminated"


@pytest.mark.rocketmq
def test_ends_are_announced_on_an_ordinary_rocketmq_topic(live, rocketmq):
    rocketmq.provision("ended", "listeners", "NORMAL")
    template = ending_in(3600)
    live.execute(template)
    outcome = live.execute(terminate(template.template_id))
    announce = example("announce")

    with (
        announce.rocketmq_publisher(rocketmq.endpoints, "ended") as publish,
        in_background(announce.announce, live, publish),
    ):
        (body,) = received(rocketmq.endpoints, "ended", "listeners")

    assert json.loads(body) == {
        "type": "CouponTemplateEnded",
        "template_id": str(template.template_id),
        "shop_number": SHOP,
        "reason": "terminated",
        "ended_at": outcome.events[0].ended_at.isoformat(),
        "position": outcome.position,
    }
    with pytest.raises(Exception, match="not running"):
        publish(b"after it was shut down")


def received(endpoints: str, topic: str, group: str) -> list[bytes]:
    """The first messages that come, acknowledged."""
    rocketmq = library().rocketmq
    configuration = rocketmq.ClientConfiguration(endpoints, rocketmq.Credentials())
    consumer = rocketmq.SimpleConsumer(configuration, group, {topic: rocketmq.FilterExpression()}, await_duration=5)
    settings_came = consumer._init_settings_event
    messages = []

    def receive() -> list[object]:
        messages.extend(consumer.receive(32, 10))
        return messages

    consumer.startup()
    try:
        eventually(settings_came.is_set)  # receiving is refused until then
        eventually(receive)
        for message in messages:
            consumer.ack(message)
    finally:
        consumer.shutdown()
    return [message.body for message in messages]


def follows(app, name: str, up_to: int = 0) -> bool:
    with app.pool.connection() as connection:
        found = connection.execute("SELECT 1 FROM checkpoint WHERE name = %s AND position >= %s", (name, up_to))
        return found.fetchone() is not None
