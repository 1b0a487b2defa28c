"""Celery with Redis: tasks with an eta; prefork with two processes, all else as it comes."""

import os
import sys
from collections.abc import Sequence

from celery import Celery
from job import aware, main, record

app = Celery("celery_redis", broker=os.environ["REDIS_URL"])
app.conf.task_ignore_result = True


@app.task
def ended(job: int) -> None:
    record(job)


def schedule(times: Sequence[float]) -> None:
    for n, at in enumerate(times):
        ended.apply_async((n,), eta=aware(at))


def work() -> None:
    os.execv(
        sys.executable,
        [sys.executable, "-m", "celery", "-A", "celery_redis", "worker", "--concurrency", "2", "--loglevel", "ERROR"],
    )


if __name__ == "__main__":
    main(schedule, work)
