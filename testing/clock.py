"""PostgreSQL's time, set by hand."""

from datetime import datetime, timedelta

from coupon_clock.domain import arguments, rules
from coupon_clock.domain.validity import utc
from coupon_clock.infrastructure.postgres.connection import connect, execute_script
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.infrastructure.settings import Settings

# While the time stands still, an end cannot come between a check and a commit: the margin is none.
MANUAL = """
CREATE TABLE IF NOT EXISTS {schema}.manual_clock (at timestamptz);
CREATE OR REPLACE FUNCTION {schema}.now_utc() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT coalesce((SELECT at FROM {schema}.manual_clock), clock_timestamp())';
DROP TRIGGER refuse_late_move ON {schema}.alarm;
CREATE CONSTRAINT TRIGGER refuse_late_move AFTER UPDATE OF due_at ON {schema}.alarm
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.due_at IS DISTINCT FROM NEW.due_at)
    EXECUTE FUNCTION {schema}.refuse_late_move('0');
"""


class ManualClock:
    """PostgreSQL's time in one throw-away database and schema, turned by hand. `now` is kept in UTC."""

    def __init__(self, settings: Settings, now: datetime) -> None:
        self._settings = settings
        self._schema = Schema(settings.database_schema)
        with connect(settings) as connection:
            execute_script(connection, self._schema.sql(MANUAL))
        self.set(now)

    def set(self, now: datetime) -> None:
        """`now`: an aware time. Raises InvalidArgument where it is naive."""
        arguments.refuse(rules.instant("now", now))
        self.now = utc(now)
        with connect(self._settings) as connection, connection.transaction():
            connection.execute(self._schema.sql("DELETE FROM {schema}.manual_clock"))
            connection.execute(self._schema.sql("INSERT INTO {schema}.manual_clock VALUES (%s)"), (self.now,))

    def advance(self, **by: float) -> None:
        """By days (of 24 hours), hours, minutes, seconds, milliseconds, microseconds, as `timedelta` takes them."""
        self.set(self.now + timedelta(**by))
