"""What every file under policies/ is made of: strict parts, texts of a known shape, and faults that name the value to blame."""

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class PolicyPart(BaseModel):
    """A piece of policy: frozen, and an unknown key is an error, since a misspelt rule must not silently do nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def fault(path: tuple[str | int, ...], message: str) -> PydanticCustomError:
    """The error of a validator that sees more than one value: `path` leads from there to the value to blame."""
    return PydanticCustomError("fault", "{message}", {"message": message, "path": path})


def refuse_repeats(field: str, key: str, values: Iterable[str]) -> None:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in first:
            raise fault((field, index, key), f"expected a {key} of its own, found {value!r}, which is taken by {field}[{first[value]}]")
        first[value] = index


def _pattern(text: str) -> str:
    try:
        re.compile(text, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


def refuse_empty_range(since: str | None, before: str | None) -> None:
    if since is not None and before is not None and version_numbers(since) >= version_numbers(before):
        raise fault(("before",), f"expected a version later than since ({since!r}), found {before!r}")


def version_numbers(version: str) -> tuple[int, ...]:
    """A `Version` as numbers to compare, zeros at the end removed: 6.9 and 6.9.0 are the same."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


VERSION_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,9}){0,3}$"
IDENTIFIER_PATTERN = r"^[A-Z][A-Z0-9]*(-[A-Z0-9]+)+$"
POLICY_ID_PATTERN = r"^[a-z][a-z0-9-]*(\+[a-z][a-z0-9-]*)*$"
LINE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"
BUILD_ID_PATTERN = r"^[0-9a-f]{16,64}$"
WAIVER_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
CRON_PATTERN = r"^[0-9A-Za-z*,/-]+( [0-9A-Za-z*,/-]+){4}$"
TIME_ZONE_PATTERN = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$"
PACKAGE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9+._-]*$"  # deb-src-control(5), and what rpm allows in a name
PACKAGE_VERSION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+:~^-]*$"  # deb-version(7); rpm's [epoch:]version-release
RELEASE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+~_-]*$"

#: The patterns above in an operator's words.
PATTERN_WORDS = {
    VERSION_PATTERN: "a version in quotes, such as '6.9'",
    IDENTIFIER_PATTERN: "capital letters and digits in words joined by '-', such as HOST-KERNEL-GUARD",
    POLICY_ID_PATTERN: "small letters, digits and '-', such as pmu-off",
    LINE_PATTERN: "one line of text without control characters",
    BUILD_ID_PATTERN: "a build-id of 16 to 64 small hexadecimal digits",
    WAIVER_ID_PATTERN: "letters, digits, '.', '_' and '-', such as CHG-1234",
    CRON_PATTERN: "cron's five fields, such as '0 2 * * sat'",
    TIME_ZONE_PATTERN: "a time zone's name, such as Europe/Berlin",
    PACKAGE_PATTERN: "a package's name, such as linux-image-amd64",
    PACKAGE_VERSION_PATTERN: "a package's full version, such as 6.1.0-56 or 2:1.0-1+deb12u1",
    RELEASE_PATTERN: "a kernel release, such as 6.1.0-56-amd64",
}

Pattern = Annotated[str, Field(max_length=500), AfterValidator(_pattern)]
Version = Annotated[str, Field(pattern=VERSION_PATTERN, description="dotted numbers in quotes, for example '6.9'")]
Identifier = Annotated[str, Field(pattern=IDENTIFIER_PATTERN, max_length=64)]
PolicyId = Annotated[str, Field(pattern=POLICY_ID_PATTERN, max_length=200)]
Text = Annotated[str, Field(min_length=1, max_length=4000)]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=LINE_PATTERN)]
