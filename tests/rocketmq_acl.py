"""A RocketMQ that asks who is there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from coupon_clock.local_servers.remoting import ROUTE_OF_TOPIC, UPDATE_BROKER, UPDATE_GROUP, UPDATE_TOPIC, request
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ

CREATE_USER, CREATE_ACL = 3001, 3006
ADMINISTRATION = (UPDATE_TOPIC, UPDATE_BROKER, ROUTE_OF_TOPIC, UPDATE_GROUP, CREATE_USER, CREATE_ACL)


class Credentials(NamedTuple):
    """As RocketMQ's clients give them."""

    access_key: str
    secret_key: SecretStr


def guarded_rocketmq(folder: Path, owner: Credentials) -> LocalRocketMQ:
    """One where `owner` may do all, and others what they are allowed to."""
    return LocalRocketMQ(folder, access_control(BROKER_STORES, owner), access_control(PROXY_STORES, owner))


def admit(server: LocalRocketMQ, user: Credentials, rights: Mapping[str, Sequence[str]]) -> None:
    """Make a user with these rights only: `Pub`, `Sub` or both, by `Topic:NAME` or `Group:NAME`."""
    broker = server.ports.broker
    make_user(broker, user.access_key, user.secret_key.get_secret_value())
    allow(broker, user.access_key, rights)


def make_user(broker_port: int, name: str, password: str) -> None:
    """Create a user who may do nothing yet."""
    user = {"username": name, "password": password, "userType": "Normal", "userStatus": "enable"}
    request(broker_port, CREATE_USER, {"username": name}, json.dumps(user).encode())


def allow(broker_port: int, user: str, rights: Mapping[str, Sequence[str]]) -> None:
    """Let a user do that and nothing else: `Pub`, `Sub` or both, by `Topic:NAME` or `Group:NAME`."""
    entries = [
        {"resource": resource, "actions": actions, "sourceIps": [], "decision": "Allow"}
        for resource, actions in rights.items()
    ]
    acl = {"subject": f"User:{user}", "policies": [{"policyType": "Custom", "entries": entries}]}
    request(broker_port, CREATE_ACL, {"subject": f"User:{user}"}, json.dumps(acl).encode())


AUTH = "org.apache.rocketmq.auth"
BROKER_STORES = {
    "authenticationMetadataProvider": f"{AUTH}.authentication.provider.LocalAuthenticationMetadataProvider",
    "authorizationMetadataProvider": f"{AUTH}.authorization.provider.LocalAuthorizationMetadataProvider",
}
PROXY_STORES = {
    "authenticationMetadataProvider": "org.apache.rocketmq.proxy.auth.ProxyAuthenticationMetadataProvider",
    "authorizationMetadataProvider": "org.apache.rocketmq.proxy.auth.ProxyAuthorizationMetadataProvider",
}


def access_control(stores: dict[str, str], owner: Credentials) -> dict[str, object]:
    """Clients must sign, and may do only what they are allowed to. Our own administration is let through unsigned."""
    name, secret = owner.access_key, owner.secret_key.get_secret_value()
    administration = ",".join(map(str, ADMINISTRATION))
    return {
        **stores,
        "authenticationEnabled": True,
        "authenticationProvider": f"{AUTH}.authentication.provider.DefaultAuthenticationProvider",
        "authenticationWhitelist": administration,
        "authorizationEnabled": True,
        "authorizationProvider": f"{AUTH}.authorization.provider.DefaultAuthorizationProvider",
        "authorizationWhitelist": administration,
        "initAuthenticationUser": json.dumps({"username": name, "password": secret}),
        "innerClientAuthenticationCredentials": json.dumps({"accessKey": name, "secretKey": secret}),
    }
