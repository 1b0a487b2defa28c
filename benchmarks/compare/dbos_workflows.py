"""DBOS: workflows enqueued with a delay; all else as it comes."""

import time
from collections.abc import Sequence

from dbos import DBOS, DBOSClient
from job import SQLALCHEMY_URL, main, record


@DBOS.workflow(name="ended")
def ended(job: int) -> None:
    record(job)


def launched() -> None:
    DBOS(config={"name": "compare", "system_database_url": SQLALCHEMY_URL, "application_version": "1"})
    DBOS.launch()
    DBOS.register_queue("coupons")


def schedule(times: Sequence[float]) -> None:
    launched()  # makes its tables
    client = DBOSClient(system_database_url=SQLALCHEMY_URL)
    for n, at in enumerate(times):
        options = {"workflow_name": "ended", "queue_name": "coupons", "app_version": "1"}
        client.enqueue(options | {"delay_seconds": at - time.time()}, n)  # type: ignore[arg-type]
    client.destroy()
    DBOS.destroy()


def work() -> None:
    launched()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(schedule, work)
