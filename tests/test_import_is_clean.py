"""Whoever imports Coupon Clock, and runs it on RocketMQ, keeps their home folder and their logging as they were."""

import subprocess
import sys
import textwrap
from pathlib import Path

HOST = """
    import logging, sys
    logging.basicConfig(filename=sys.argv[1], level=logging.DEBUG)
    handlers, level = list(logging.root.handlers), logging.root.level
    known = set(logging.root.manager.loggerDict)

    from coupon_clock.app import Application, Settings
    from coupon_clock.deadlines import broker_for
    assert "rocketmq" not in sys.modules, "the client is an extra, and slow to import"

    settings = Settings.load(database_url=sys.argv[2], rocketmq_endpoints="127.0.0.1:1")
    with Application.open(settings) as app, app.running():
        from coupon_clock.infrastructure.messaging.rocketmq.library import library
        library()

    assert logging.root.handlers == handlers and logging.root.level == level
    assert not handlers[0].stream.closed
    ours = [logging.getLogger(name) for name in set(logging.root.manager.loggerDict) - known]
    assert not [logger.name for logger in ours if any(isinstance(h, logging.FileHandler) for h in logger.handlers)]
    logging.getLogger("host").info("still heard")
"""


def test_importing_and_running_touches_neither_the_home_folder_nor_the_hosts_logging(
    tmp_path: Path, database_url: str
) -> None:
    (home := tmp_path / "home").write_text("a file, so that nothing can be made in it, not even by root")
    log = tmp_path / "host.log"

    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HOST), str(log), database_url],
        env={"HOME": str(home), "PYTHONPATH": ":".join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "INFO:host:still heard" in log.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "host.log"]
