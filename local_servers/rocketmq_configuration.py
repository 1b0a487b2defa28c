"""The files that make a RocketMQ small, quick to start and alone on its machine."""

import json
from dataclasses import dataclass
from pathlib import Path

from coupon_clock.local_servers.ports import is_free

CLUSTER = "DefaultCluster"


@dataclass(frozen=True)
class Ports:
    """Six neighbouring ports; the second is the one two below the broker's, which the broker takes unasked."""

    first: int

    COUNT = 6

    @property
    def name_server(self) -> int:
        return self.first

    @property
    def ha(self) -> int:
        return self.first + 2

    @property
    def broker(self) -> int:
        return self.first + 3

    @property
    def grpc(self) -> int:
        return self.first + 4

    @property
    def proxy_remoting(self) -> int:
        return self.first + 5

    def all(self) -> range:
        return range(self.first, self.first + self.COUNT)

    def are_free(self) -> bool:
        return all(map(is_free, self.all()))


Further = dict[str, object]
"""Settings beside those that are needed here."""


def configure(folder: Path, ports: Ports, further_broker: Further, further_proxy: Further) -> None:
    """Write `name-server.conf`, `broker.conf` and `proxy.json` into the folder."""
    (folder / "name-server.conf").write_text(properties(name_server(ports)))
    (folder / "broker.conf").write_text(properties(broker(folder, ports) | further_broker))
    (folder / "proxy.json").write_text(json.dumps(proxy(ports) | further_proxy, indent=2))


def name_server(ports: Ports) -> dict[str, object]:
    return {"listenPort": ports.name_server, "bindAddress": "127.0.0.1"}


def broker(folder: Path, ports: Ports) -> dict[str, object]:
    return {
        "brokerClusterName": CLUSTER,
        "brokerName": "broker",
        "brokerId": 0,
        "brokerIP1": "127.0.0.1",
        "bindAddress": "127.0.0.1",
        "namesrvAddr": f"127.0.0.1:{ports.name_server}",
        "listenPort": ports.broker,
        "haListenPort": ports.ha,
        "storePathRootDir": folder / "store",
        "storePathCommitLog": folder / "store" / "commitlog",
        "autoCreateTopicEnable": False,  # a topic made by accident would not be one for delayed messages
        "mappedFileSizeCommitLog": 64 * 1024 * 1024,  # each file is made at its full size; the default is 1 GB
        # Each thread that stores keeps a buffer of this size; 4 MB each outgrow this heap.
        "maxMessageSize": 256 * 1024,
        "timerPrecisionMs": 100,  # on a shared broker keep 1000
        "diskMaxUsedSpaceRatio": 99,  # a developer's disk is often fuller than the 75 % at which messages are dropped
    }


def proxy(ports: Ports) -> dict[str, object]:
    return {
        "rocketMQClusterName": CLUSTER,
        "proxyMode": "LOCAL",
        "namesrvAddr": f"127.0.0.1:{ports.name_server}",
        "grpcServerPort": ports.grpc,
        "remotingListenPort": ports.proxy_remoting,
    }


def properties(settings: dict[str, object]) -> str:
    """Java's format. Only a path can hold a backslash, the one character that needs care."""
    return "".join(f"{name}={in_java(value)}\n".replace("\\", "\\\\") for name, value in settings.items())


def in_java(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
