"""APScheduler with jobs in PostgreSQL: 20 threads, and no limit to how late a job may start (the default of 1 s drops
most of them)."""

import time
from collections.abc import Sequence

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from job import SQLALCHEMY_URL, aware, main, record


def scheduler() -> BackgroundScheduler:
    return BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=SQLALCHEMY_URL)},
        executors={"default": ThreadPoolExecutor(20)},
        job_defaults={"misfire_grace_time": None},
    )


def schedule(times: Sequence[float]) -> None:
    jobs = scheduler()
    jobs.start(paused=True)
    for n, at in enumerate(times):
        jobs.add_job(record, "date", run_date=aware(at), args=(n,))
    jobs.shutdown()


def work() -> None:
    scheduler().start()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(schedule, work)
