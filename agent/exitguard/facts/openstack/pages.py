"""A listing that comes in pages, read as a whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from exitguard.facts.openstack.errors import BadRequestError, UnseenError

T = TypeVar("T")
_MOST_PAGES = 10_000
_MOST_ITEMS = 1_000_000
#: How many of the last items of a page may be deleted before the next one is asked for.
_MOST_GONE = 5


class Reader(Protocol):
    """Whoever can get the JSON object at a path."""

    def get(self, path: str, parameters: Mapping[str, str], *, microversion: str | None = None) -> dict[str, Any]: ...


def read_pages(
    reader: Reader,
    path: str,
    name: str,
    parse: Callable[[Mapping[str, Any]], T],
    *,
    parameters: Mapping[str, str],
    microversion: str | None = None,
) -> tuple[T, ...]:
    """Every item of a listing, each once, in the order of its id. Raises UnseenError: a part of a listing is none.

    The next page is asked for by the last item of this one, and a link that Nova or Glance sends is never followed: only that there is one
    counts. Something that is created or moved meanwhile may be missed or seen twice; twice is once here, as it was seen last.
    """
    found: dict[str, T] = {}
    last: tuple[str, ...] = ()
    for number in range(1, _MOST_PAGES + 1):
        document = _page(reader, path, parameters, last, microversion)
        items = document.get(name)
        if not isinstance(items, list):
            raise UnseenError(f"{path}: expected a list {name!r} in page {number}, found {type(items).__name__}")
        before = len(found)
        for index, item in enumerate(items):
            parsed = parse_item(parse, item, f"{path}: page {number}, {name}[{index}]")
            found[str(item["id"])] = parsed
        if not (document.get(f"{name}_links") or document.get("next")):
            return tuple(found[each] for each in sorted(found))
        if len(found) == before:
            raise UnseenError(f"{path}: page {number} brings nothing new and says that another follows: the listing goes in circles")
        if len(found) > _MOST_ITEMS:
            raise UnseenError(f"{path}: expected at most {_MOST_ITEMS} {name}, found more")
        last = tuple(str(item.get("id")) for item in items[-_MOST_GONE:])
    raise UnseenError(f"{path}: expected at most {_MOST_PAGES} pages, found more")


def parse_item(parse: Callable[[Mapping[str, Any]], T], item: object, told: str) -> T:
    """One item of a listing. Raises UnseenError that says which."""
    if not isinstance(item, dict):
        raise UnseenError(f"{told}: expected an object, found {type(item).__name__}")
    try:
        return parse(item)
    except UnseenError as error:
        raise UnseenError(f"{told}: {error}") from error


def _page(reader: Reader, path: str, parameters: Mapping[str, str], last: Sequence[str], microversion: str | None) -> dict[str, Any]:
    """The page after the last of `last` that is still there: Nova and Glance refuse (400) one that was deleted meanwhile."""
    if not last:
        return reader.get(path, parameters, microversion=microversion)
    refused: BadRequestError | None = None
    for marker in reversed(last):
        try:
            return reader.get(path, {**parameters, "marker": marker}, microversion=microversion)
        except BadRequestError as error:
            refused = error
    raise UnseenError(f"{refused}: the last {len(last)} of the page before were deleted meanwhile, or are not known") from refused
