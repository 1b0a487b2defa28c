"""The files that make a RocketMQ small, quick to start and alone on its machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

CLUSTER = "DefaultCluster"

Options = Mapping[str, object]


class Ports(NamedTuple):
    """Six neighbouring ports. A broker takes the one two below its own by itself, for its VIP channel."""

    name_server: int
    broker_vip: int
    ha: int
    broker: int
    grpc: int
    proxy_remoting: int

    @classmethod
    def starting_at(cls, first: int) -> Self:
        return cls(*range(first, first + len(cls._fields)))


def configure(folder: Path, ports: Ports, broker_options: Options, proxy_options: Options) -> None:
    """Writes `name-server.conf`, `broker.conf` and `proxy.json` into the folder; the options go into the latter two."""
    (folder / "name-server.conf").write_text(properties(name_server(ports)))
    (folder / "broker.conf").write_text(properties({**broker(folder, ports), **broker_options}))
    (folder / "proxy.json").write_text(json.dumps({**proxy(ports), **proxy_options}, indent=2))


def name_server(ports: Ports) -> Options:
    return {"listenPort": ports.name_server}


def broker(folder: Path, ports: Ports) -> Options:
    return {
        "brokerClusterName": CLUSTER,
        "brokerName": "broker",
        "brokerId": 0,
        "brokerIP1": "127.0.0.1",
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


def proxy(ports: Ports) -> Options:
    return {
        "rocketMQClusterName": CLUSTER,
        "proxyMode": "LOCAL",
        "namesrvAddr": f"127.0.0.1:{ports.name_server}",
        "grpcServerPort": ports.grpc,
        "remotingListenPort": ports.proxy_remoting,
    }


def properties(options: Options) -> str:
    """Java's format. Only a path can hold a backslash, the one character that must be escaped."""
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    return "".join(f"{name}={text}\n".replace("\\", "\\\\") for name, text in texts.items())
