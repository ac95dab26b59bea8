"""The facts of a host from a file: what `exitguard facts --format json` wrote, here or elsewhere."""

from pathlib import Path

from pydantic import ValidationError

from exitguard.model.documents import FactsDocument

#: Larger than the facts of any host: 10,000 domains make some 20 MB.
_LIMIT_BYTES = 64 * 1024 * 1024


class FactsError(Exception):
    """A file that does not hold the facts of a host; the message says why."""


def read_facts(path: Path) -> FactsDocument:
    """The facts in a file. Raises FactsError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise FactsError(
            f"{path}: {(error.strerror or str(error)).lower()}. Expected the output of `exitguard facts --format json`."
        ) from error
    if len(content) > _LIMIT_BYTES:
        raise FactsError(f"{path}: expected at most {_LIMIT_BYTES} bytes, found more.")
    try:
        return FactsDocument.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise FactsError(
            f"{path}: not the facts of a host: {where}: {first['msg']}. Expected the output of `exitguard facts --format json` of this "
            "version or an older one."
        ) from error
