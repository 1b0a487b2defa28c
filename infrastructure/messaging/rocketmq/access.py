"""Where RocketMQ is and who we are there."""

from typing import NamedTuple, Self

from pydantic import SecretStr

from coupon_clock.infrastructure.settings import Settings


class Access(NamedTuple):
    """Plain values; the secret stays out of its repr."""

    endpoints: str
    topic: str
    group: str
    namespace: str
    access_key: str
    secret_key: SecretStr
    tls: bool

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            settings.rocketmq_endpoints,
            settings.rocketmq_topic,
            settings.rocketmq_group,
            settings.rocketmq_namespace,
            settings.rocketmq_access_key,
            settings.rocketmq_secret_key,
            settings.rocketmq_tls,
        )
