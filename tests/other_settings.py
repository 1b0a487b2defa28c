"""What others may have set in a session that they had before us, or for a whole database or role."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.pq import ExecStatus, TransactionStatus

MAY_BE_SET = """
SELECT name, setting, vartype, enumvals, min_val
  FROM pg_settings
 WHERE context = ANY (%s)
   AND name <> ALL (%s)
 ORDER BY name
"""
NOT_CHANGED = [
    # The start-up packet says which, and poolers restore it.
    "client_encoding",
    # Of the transaction that runs, and not to be set before.
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
    # Refused with a sentence: tests of their own.
    "default_transaction_isolation",
    "default_transaction_read_only",
    # Whoever sets these wants statements or sessions to fail.
    "exit_on_error",
    "role",
    "session_authorization",
    # Only for superusers, who then mean it: the triggers that guard the log would not fire.
    "session_replication_role",
    # Whoever sets these looks for faults in PostgreSQL itself, or in its disks.
    "debug_discard_caches",
    "log_executor_stats",
    "log_parser_stats",
    "log_planner_stats",
    "max_stack_depth",
    # They name files and folders of the server.
    "default_table_access_method",
    "default_tablespace",
    "local_preload_libraries",
    "temp_tablespaces",
]
HOSTILE = "hostile"
CHOSEN = {
    "search_path": [HOSTILE, "", f"public, {HOSTILE}, pg_catalog"],
    "DateStyle": ["SQL, DMY", "German", "Postgres, MDY"],
    "TimeZone": ["Asia/Kathmandu", "America/St_Johns"],
    "application_name": ["a neighbour's"],
    "client_min_messages": ["debug2", "error"],
    "log_min_error_statement": ["panic"],
    "log_min_messages": ["debug1", "panic"],
    "icu_validation_level": ["disabled", "error"],
    "lc_messages": ["C"],
    "lc_monetary": ["C"],
    "lc_numeric": ["C"],
    "lc_time": ["C"],
    "timezone_abbreviations": ["India"],
    "default_text_search_config": ["pg_catalog.german"],
    "createrole_self_grant": ["set"],
    "restrict_nonsystem_relation_kind": ["foreign-table"],
    "lock_timeout": ["1s"],
    "statement_timeout": ["30s"],
    "transaction_timeout": ["50s"],
    "idle_in_transaction_session_timeout": ["50s"],
    "idle_session_timeout": ["50s"],
    "max_parallel_workers_per_gather": ["4"],
    "jit_above_cost": ["0"],
    "seed": ["0.5"],
}
"""Where another value cannot be derived, or the lowest would be no test."""

HOSTILE_SCHEMA = f"""
CREATE SCHEMA {HOSTILE};
CREATE TABLE {HOSTILE}.event (nothing int);
CREATE TABLE {HOSTILE}.alarm (nothing int);
CREATE TABLE {HOSTILE}.checkpoint (nothing int);
CREATE TABLE {HOSTILE}.coupon_template (nothing int);
CREATE FUNCTION {HOSTILE}.now_utc() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''epoch''::timestamptz';
"""


def other_values(connection: Connection[Any], contexts: list[str]) -> dict[str, list[str]]:
    """Of each setting that may be set by those, values that it does not have now. `contexts`: as in pg_settings."""
    values = {}
    for name, setting, vartype, enumvals, lowest in connection.execute(MAY_BE_SET, (contexts, NOT_CHANGED)):
        if name in CHOSEN:
            values[name] = CHOSEN[name]
        elif vartype == "bool":
            values[name] = ["off" if setting == "on" else "on"]
        elif vartype == "enum":
            values[name] = [value for value in enumvals if value != setting]
        elif lowest is not None and float(lowest) != float(setting):
            values[name] = [lowest]
    return {name: several for name, several in values.items() if several}


MOST_VALUES = 4


def all_at_once(values: Mapping[str, list[str]], number: int) -> dict[str, str]:
    """Each with its value of that number, counted round: after MOST_VALUES numbers each has had all of its own."""
    assert max(map(len, values.values())) <= MOST_VALUES
    return {name: several[number % len(several)] for name, several in values.items()}


def assignments(prefix: str, settings: Mapping[str, str]) -> str:
    """search_path and the like take a list, which is no single string."""
    return ";".join(
        f"{prefix} SET {name} TO {value if name == 'search_path' and value else sql.Literal(value).as_string(None)}"
        for name, value in settings.items()
    )


@contextmanager
def of_all_new_sessions(database_url: str, of_whom: str, settings: Mapping[str, str]) -> Iterator[None]:
    """`of_whom`: "database", or "role"."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname if of_whom == "database" else connection.info.user)
        whose = f"ALTER {of_whom} {name.as_string(None)}"
        connection.execute(assignments(whose, settings))
        try:
            yield
        finally:
            connection.execute(f"{whose} RESET ALL")


@contextmanager
def set_behind_our_back(settings: Mapping[str, str]) -> Iterator[None]:
    """As a pooler's other client would: before each transaction of every connection."""
    statements = assignments("", settings).encode()
    wait = Connection.wait

    def wait_disturbed(connection: Connection[Any], *arguments: Any, **given: Any) -> Any:
        if connection.pgconn.transaction_status == TransactionStatus.IDLE:
            result = connection.pgconn.exec_(statements)
            assert result.status == ExecStatus.COMMAND_OK, result.error_message
        return wait(connection, *arguments, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "wait", wait_disturbed)
        yield
