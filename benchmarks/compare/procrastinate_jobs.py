"""procrastinate: jobs with a scheduled time; concurrency 20, and a look every 0.1 s (5 s by default)."""

from collections.abc import Sequence
from itertools import groupby

import procrastinate
from job import DATABASE_URL, aware, main, record

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DATABASE_URL))


@app.task(name="ended")
def ended(job: int) -> None:
    record(job)


def schedule(times: Sequence[float]) -> None:
    with app.open():
        app.schema_manager.apply_schema()
        for at, jobs in groupby(enumerate(times), key=lambda pair: pair[1]):
            ended.configure(schedule_at=aware(at)).batch_defer(*({"job": n} for n, _ in jobs))


def work() -> None:
    app.run_worker(concurrency=20, fetch_job_polling_interval=0.1)


if __name__ == "__main__":
    main(schedule, work)
