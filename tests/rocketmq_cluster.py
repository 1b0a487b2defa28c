"""Two broker masters behind one proxy: for what goes wrong only with several.

Four Java machines, about 900 MB: everyday work needs no more than LocalRocketMQ.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.local_servers import ports, remoting
from coupon_clock.local_servers.detached import end, find, launch, send, until
from coupon_clock.local_servers.errors import ServerDidNotAnswer
from coupon_clock.local_servers.rocketmq_configuration import Ports, broker, name_server, properties, proxy
from coupon_clock.local_servers.rocketmq_jars import rocketmq_jars
from coupon_clock.local_servers.rocketmq_server import (
    NAME_SERVER,
    START_SECONDS,
    STOP_SECONDS,
    home,
    java,
    prepare,
)

BROKER = "org.apache.rocketmq.broker.BrokerStartup"
PROXY = "org.apache.rocketmq.proxy.ProxyStartup"
BROKERS = ("east", "west")


class LocalRocketMQCluster:
    """Brokers `east` and `west`. Started once in a folder of its own, and ended with `kill`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        first = ports.free_block(3 + len(Ports._fields))
        # The second broker's three follow the first's, and then the proxy's two; all have one name server.
        places = [Ports.starting_at(first + 3 * n)._replace(name_server=first) for n in range(len(BROKERS))]
        self._brokers = dict(zip(BROKERS, places, strict=True))
        self._proxy = places[-1]

    @property
    def endpoints(self) -> str:
        """Of the proxy, as clients take them."""
        return f"127.0.0.1:{self._proxy.grpc}"

    def start(self, progress: Progress = no_progress) -> str:
        """Returns the endpoints once clients can connect."""
        jars = rocketmq_jars(progress)
        self.folder.mkdir(parents=True)
        self._configure()
        prepare(self.folder, jars)
        self._launch(jars, "name-server", "-Xmx64m", NAME_SERVER, "-c", "name-server.conf")
        self._await_port(self._proxy.name_server)
        for name in BROKERS:
            self._launch_broker(jars, name)
        for name in BROKERS:
            self._await_port(self._brokers[name].broker)
        arguments = ["-pm", "cluster", "-pc", "proxy.json", "-n", f"127.0.0.1:{self._proxy.name_server}"]
        self._launch(jars, "proxy", "-Xmx256m", PROXY, *arguments)
        for port in (self._proxy.grpc, self._proxy.proxy_remoting):
            self._await_port(port)
        return self.endpoints

    def provision(self, topic: str, group: str) -> None:
        """On both brokers; returns when the proxy knows."""
        for name in BROKERS:
            here = self._brokers[name].broker
            remoting.make_topic(here, topic, "DELAY")
            remoting.make_group(here, group)
            remoting.register_now(here)
        for port in (self._proxy.name_server, self._proxy.proxy_remoting):
            self._await(lambda port=port: remoting.knows_route(port, topic))  # type: ignore[misc]

    def kill_broker(self, name: str) -> None:
        """As a power cut would. What it has stored survives."""
        if process := self._process(name):
            end([process], signal.SIGKILL, STOP_SECONDS)

    def hang_broker(self, name: str) -> None:
        """Its ports stay open, and nothing is answered."""
        send(filter(None, [self._process(name)]), signal.SIGSTOP)

    def restore_broker(self, name: str) -> None:
        """Wake it, or start it again; returns when it answers and its name server knows."""
        if process := self._process(name):
            send([process], signal.SIGCONT)
        else:
            self._launch_broker(rocketmq_jars(), name)
        self._await_port(self._brokers[name].broker)
        remoting.register_now(self._brokers[name].broker)

    def kill(self) -> None:
        """All of it."""
        found = [find(home(self.folder), program) for program in (PROXY, NAME_SERVER)]
        end([process for process in found if process], signal.SIGKILL, STOP_SECONDS)
        for name in BROKERS:
            self.kill_broker(name)

    def _configure(self) -> None:
        for name in BROKERS:
            own = {**broker(self.folder / name, self._brokers[name]), "brokerName": name}
            (self.folder / f"{name}.conf").write_text(properties(own))
        (self.folder / "name-server.conf").write_text(properties(name_server(self._proxy)))
        (self.folder / "proxy.json").write_text(json.dumps({**proxy(self._proxy), "proxyMode": "CLUSTER"}))

    def _process(self, name: str) -> psutil.Process | None:
        return find(home(self.folder), f"{name}.conf")

    def _launch_broker(self, jars: Path, name: str) -> None:
        self._launch(jars, name, "-Xmx256m", BROKER, "-c", f"{name}.conf")

    def _launch(self, jars: Path, log: str, *arguments: str) -> None:
        launch([*java(self.folder, jars), *arguments], self.folder / f"{log}.log")

    def _await_port(self, port: int) -> None:
        self._await(lambda: ports.accepts(port))

    def _await(self, condition: Callable[[], bool]) -> None:
        if not until(condition, START_SECONDS):
            self.kill()
            raise ServerDidNotAnswer("RocketMQ", f"not within {START_SECONDS:.0f} s", self.folder)
