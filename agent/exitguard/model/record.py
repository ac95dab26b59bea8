"""What every record of the vocabulary is, and `Observed`: a value with its source, or the reason why there is none."""

from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)  # a frozen value of a narrower type serves where a wider one is read


class Record(BaseModel):
    """A frozen, typed value. Unknown fields are ignored on reading, so that documents can grow without breaking old readers."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, use_enum_values=False)


class Observed(Record, Generic[T_co]):
    """What one source said, or why it could not say: exactly one of `value` and `reason` is set."""

    source: str
    value: T_co | None = None
    reason: str | None = None
    #: The privilege, group or package that would show it, where one would.
    unlock: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.value is None) == (self.reason is None):
            raise ValueError(f"{self.source}: an observation has either a value or a reason, not both and not neither")
        return self

    @property
    def known(self) -> bool:
        return self.reason is None

    def get(self) -> T_co:
        """The value; raises LookupError with the reason where there is none."""
        if self.value is None:
            raise LookupError(f"{self.source}: {self.reason}")
        return self.value


def seen(source: str, value: T) -> Observed[T]:
    """The value that `source` showed."""
    return Observed(source=source, value=value)


def unseen(source: str, reason: str, *, unlock: str | None = None) -> Observed[T]:
    """No value, and why; `unlock` names what would show it."""
    return Observed(source=source, reason=reason, unlock=unlock)
