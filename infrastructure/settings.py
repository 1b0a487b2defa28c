"""Every knob: its unit, its default and the reason for it. From the environment, as COUPON_CLOCK_ plus the name."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.database_url import libpq_url
from coupon_clock.infrastructure.endpoints import rocketmq_endpoints

LONGEST_TEXT = 1_000
LONGEST_URL = 8_000
LONGEST_SHOWN = 200
AN_HOUR_S = 3_600.0
A_YEAR_S = 31_622_400.0
SOONEST_S = 0.01
NAME_AT_ROCKETMQ = r"^[%a-zA-Z0-9_-]{1,120}$"


@dataclass(eq=False)
class UnusableSettings(CouponClockError):
    """The settings cannot be used: {problems}."""

    problems: str


class Settings(BaseSettings):
    """Seconds where a name says how long."""

    model_config = SettingsConfigDict(
        env_prefix="COUPON_CLOCK_", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    database_url: SecretStr = SecretStr("")
    """A URL or key=value pairs of libpq, or SQLAlchemy's postgresql+psycopg://. No default: nobody should end coupons
    in a database they did not name."""
    database_schema: str = Field("coupon_clock", pattern=r"^[a-z_][a-z0-9_]{0,30}$")
    """The one schema that holds all tables."""
    database_connections: int = Field(10, ge=2, le=1_000)
    """The most that one process opens: more than two cores' worth of writers gains nothing (docs/event-log.md)."""

    rocketmq_endpoints: str = ""
    """host:port of the gRPC proxy, several separated by ";". Empty: the in-process broker."""
    rocketmq_topic: str = Field("coupon-expiry", pattern=NAME_AT_ROCKETMQ)
    """Of type DELAY, and for nothing else."""
    rocketmq_group: str = Field("coupon-clock", pattern=NAME_AT_ROCKETMQ)
    """The consumer group that all copies share, and nobody else."""
    rocketmq_namespace: str = ""
    """Where the vendor has such."""
    rocketmq_access_key: str = ""
    """With the secret key: where RocketMQ asks who is there."""
    rocketmq_secret_key: SecretStr = SecretStr("")
    """In no log and no repr."""
    rocketmq_tls: bool = False
    """Whom to trust is gRPC's own setting, for the whole process (docs/rocketmq.md)."""

    arming_window: float = Field(3600, ge=1, le=A_YEAR_S, allow_inf_nan=False)
    """How far ahead alarms go to RocketMQ: an hour keeps a bulk import from flooding it, and is below all vendors'
    caps on delays."""
    lead: float = Field(10, ge=1, le=AN_HOUR_S, allow_inf_nan=False)
    """How long before the end a message is delivered, to be held until the instant: longer than the first long poll
    of a starting consumer (5 s, measured)."""
    reconcile_interval: float = Field(1, ge=SOONEST_S, le=AN_HOUR_S, allow_inf_nan=False)
    """How often the reconciler looks for what is overdue: with the grace, the longest lateness without a broker."""
    reconcile_grace: float = Field(1, ge=0, le=AN_HOUR_S, allow_inf_nan=False)
    """The reconciler leaves alarms alone for this long after their end, so that it does not race the messages."""
    max_held: int = Field(200_000, ge=1, le=10_000_000)
    """How many messages one consumer holds (about 400 bytes each) before it stops receiving."""

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, given: object, of: ValidationInfo) -> object:
        """What Python takes for a number, and what no text of these can hold. Texts are trimmed."""
        annotation = cls.model_fields[of.field_name or ""].annotation
        if isinstance(given, bool) and annotation is not bool:
            raise ValueError("must not be true or false")
        text = given.get_secret_value() if isinstance(given, SecretStr) else given
        if not isinstance(text, str):
            return given
        text = text.strip()
        is_url = of.field_name == "database_url"
        refuse_unprintable("".join(text.split()) if is_url else text, LONGEST_URL if is_url else LONGEST_TEXT)
        return SecretStr(text) if isinstance(given, SecretStr) else text

    @field_validator("database_schema")
    @classmethod
    def _refuse_reserved(cls, name: str) -> str:
        if name.startswith("pg_") or name == "information_schema":
            raise ValueError("it is one of PostgreSQL's own")
        return name

    @classmethod
    def load(cls, **given: object) -> Self:
        """From the arguments, then the environment. Raises UnusableSettings with every problem."""
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False)
            # Not `from error`: that holds all that was given, secrets too.
            raise UnusableSettings("; ".join(_in_words(problem) for problem in problems)) from None

    @field_validator("database_url")
    @classmethod
    def _as_libpq_takes_it(cls, given: SecretStr) -> SecretStr:
        return SecretStr(libpq_url(given.get_secret_value()))

    @field_validator("rocketmq_endpoints")
    @classmethod
    def _as_the_client_takes_them(cls, given: str) -> str:
        return rocketmq_endpoints(given)

    def database(self) -> str:
        """The libpq URL. Raises UnusableSettings where it is not set."""
        url = self.database_url.get_secret_value()
        if not url:
            raise UnusableSettings("COUPON_CLOCK_DATABASE_URL is not set; `coupon-clock local up` prints one")
        return url

    @property
    def reconciled_within(self) -> timedelta:
        """How late the reconciler ends what has no message."""
        return timedelta(seconds=self.reconcile_grace + self.reconcile_interval)

    @property
    def lead_time(self) -> timedelta:
        return timedelta(seconds=self.lead)

    @property
    def arming_window_time(self) -> timedelta:
        return timedelta(seconds=self.arming_window)


def refuse_unprintable(text: str, longest: int) -> None:
    """Raises ValueError, which does not repeat it."""
    if len(text) > longest:
        raise ValueError(f"must have at most {longest:,} characters")
    if not text.isprintable():
        raise ValueError("must have no control character and nothing else that is invisible")


def _in_words(problem: object) -> str:
    """Repeats what was given for a setting that is known and no secret: an unknown one may be a secret misspelt."""
    assert isinstance(problem, dict)
    name = "_".join(str(part) for part in problem["loc"])
    field = Settings.model_fields.get(name)
    got = f" (got {_shown(problem['input'])})" if field and field.annotation is not SecretStr else ""
    return f"COUPON_CLOCK_{_shown_name(name)}: {problem['msg'].removeprefix('Value error, ')}{got}"


def _shown(given: object) -> str:
    try:
        shown = repr(given)
    except ValueError:
        return "a number of thousands of digits"
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"


def _shown_name(name: str) -> str:
    return name.upper() if name.isidentifier() else _shown(name)
