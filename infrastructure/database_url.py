"""The forms in which people write where their PostgreSQL is, as libpq takes them. No message repeats one: they hold a
password."""

import re

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")

OTHER_SCHEME = "must begin with postgresql://, postgres:// or postgresql+psycopg://"
UNREADABLE = (
    "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or KEY=VALUE pairs of libpq; in a URL each of % @ / ? # : "
    "that belongs to a user or a password is percent-encoded (%25 for %, %40 for @)"
)


def libpq_url(given: str) -> str:
    """Returns it as libpq takes it. Raises ValueError, which does not repeat it, where libpq could not read it, or
    would take a part of the password for something else."""
    given = given.strip()
    scheme = SCHEME.match(given)
    if scheme is None:
        url = given
    elif scheme[1].lower() not in SCHEMES:
        raise ValueError(OTHER_SCHEME)
    else:
        url = f"postgresql://{given[scheme.end() :]}"
        refuse_unencoded(given[scheme.end() :])
    try:
        parameters = conninfo_to_dict(url)
    except ProgrammingError:
        raise ValueError(UNREADABLE) from None
    if not re.fullmatch(r"[0-9,\s]*", str(parameters.get("port", ""))):
        raise ValueError(UNREADABLE)
    return url


def refuse_unencoded(after_scheme: str) -> None:
    """libpq ends a password at the first @, and takes what follows for a host, which its messages then repeat."""
    credentials, _, rest = after_scheme.partition("@")
    without_credentials = after_scheme if "/" in credentials else rest
    if "@" in without_credentials.partition("?")[0]:
        raise ValueError(UNREADABLE)
