"""examples/service.py"""

import json
from collections.abc import Iterator
from uuid import UUID, uuid4

import msgspec
import pytest
from fastapi.testclient import TestClient

from examples import SHOP, ending_in
from programs import example


class TestService:
    @pytest.fixture
    def client(self, database_url, monkeypatch) -> Iterator[TestClient]:
        monkeypatch.setenv("COUPON_CLOCK_DATABASE_URL", database_url)
        monkeypatch.setenv("SERVICE_TOKENS", "alice:a-long-secret")
        with TestClient(example("service").api, headers={"Authorization": "Bearer a-long-secret"}) as client:
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
            b'{"by":' * 10_000,
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

    @pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer another", "Basic a-long-secret"])
    def test_who_is_not_known_is_answered_401_before_the_body_is_read(self, client, url, header):
        headers = self.key() | {"Authorization": header}
        assert client.put(url, content=b"no JSON", headers=headers).status_code == 401
        assert client.get(url, headers=headers).status_code == 401

    def test_the_actor_is_the_caller_whatever_the_body_says(self, client, url):
        client.put(url, json=self.content() | {"actor": "somebody else"}, headers=self.key())

        shop_number, template_id = url.split("/")[2::2]
        [created] = client.app.state.app.application.history(int(shop_number), UUID(template_id))
        assert created.actor == "alice"

    def test_another_way_to_know_callers_takes_the_place_of_tokens(self, client, url, monkeypatch):
        monkeypatch.setattr(client.app.state, "authenticate", lambda request: request.headers.get("X-User"))
        assert client.get(url).status_code == 401
        assert client.get(url, headers={"X-User": "bob"}).status_code == 404

    def test_a_body_beyond_the_limit_is_refused_also_when_its_length_is_not_told(self, client, url):
        parts = (b" " * 1024 for _ in range(1024))
        assert client.put(url, content=b" " * 1_000_000, headers=self.key()).status_code == 413
        assert client.put(url, content=parts, headers=self.key()).status_code == 413

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"null",
            b"[]",
            b"{",
            b"{}",
            b'{"name": "\xff"}',
            b'{"\xff": 1}',
            b'{"a":' + b"[" * 30_000,
            b'{"stock": 1e999}',
            b'{"stock": ' + b"9" * 5_000 + b"}",
            b'{"name": "\\ud800"}',
        ],
    )
    def test_no_body_is_answered_with_a_failure_of_the_server(self, client, url, body):
        answer = client.put(url, content=body, headers=self.key())
        assert 400 <= answer.status_code < 500

    @pytest.mark.parametrize("given", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", 1e300, -1, True, []])
    def test_no_time_is_answered_with_a_failure_of_the_server(self, client, url, given):
        content = self.content() | {"valid_until": given}
        assert client.put(url, json=content, headers=self.key()).status_code == 422

    def test_numbers_out_of_range_in_the_address_are_refused(self, client, url):
        assert client.get(f"/shops/{10**30}/templates/{uuid4()}").status_code == 422
        assert client.get(url, params={"at_least": 10**30}).status_code == 422
