"""Which GRANT helps where PostgreSQL says that a right is missing."""

import re

from psycopg.errors import InsufficientPrivilege
from psycopg.sql import Identifier

DENIED = re.compile(r"permission denied for (table|view|sequence|function|schema|database) (.+)")
NOT_OWNER = "must be owner of"
ROW_SECURITY = "row-level security"

READ_AND_WRITE = (
    "GRANT SELECT ON {what} TO {role} lets it read, and GRANT INSERT, UPDATE, DELETE ON {what} TO {role} write"
)
GRANTS = {
    "table": READ_AND_WRITE,
    "view": READ_AND_WRITE,
    "sequence": "GRANT SELECT ON SEQUENCE {what} TO {role}",
    "function": "GRANT EXECUTE ON FUNCTION {what} TO {role}",
    "schema": "GRANT USAGE ON SCHEMA {what} TO {role} lets it in, and only the owner migrates and rebuilds",
    "database": "GRANT CONNECT, CREATE ON DATABASE {what} TO {role}",
}


def grant_for(error: InsufficientPrivilege, role: str, schema: str) -> str:
    """Returns what to do, in the name of `schema`, to which all tables and functions belong.

    A server that speaks another language than English leaves it at a general sentence.
    """
    message = error.diag.message_primary or ""
    quoted_role = Identifier(role).as_string()
    if denied := DENIED.fullmatch(message):
        kind, name = denied.groups()
        outside = kind in ("schema", "database") or name.startswith("pg_")
        what = (Identifier(name) if outside else Identifier(schema, name)).as_string()
        return GRANTS[kind].format(what=what, role=quoted_role)
    if message.startswith(NOT_OWNER):
        return "connect as its owner"
    if ROW_SECURITY in message:
        return f"CREATE POLICY that lets it, or ALTER ROLE {quoted_role} BYPASSRLS"
    return f"GRANT {quoted_role} what it needs"
