"""A listing that comes in pages, read as a whole or not at all."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from exitguard.facts.openstack.errors import UnseenError

T = TypeVar("T")
_MOST_PAGES = 10_000
_MOST_ITEMS = 1_000_000


class Reader(Protocol):
    """Whoever can get the JSON object at a path."""

    def get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]: ...


def read_pages(
    reader: Reader, path: str, name: str, parse: Callable[[Mapping[str, Any]], T], *, key: str = "id", parameters: Mapping[str, str]
) -> tuple[T, ...]:
    """Every item of a listing, each once, in the order of its key. Raises UnseenError: a part of a listing is none.

    The next page is asked for by the last item of this one, and a link that Nova or Glance sends is never followed: only that there is one
    counts. Something that is created, deleted or moved meanwhile may be missed or seen twice; twice is once here.
    """
    found: dict[str, T] = {}
    marker: str | None = None
    for number in range(1, _MOST_PAGES + 1):
        document = reader.get(path, {**parameters, **({} if marker is None else {"marker": marker})})
        items = document.get(name)
        if not isinstance(items, list):
            raise UnseenError(f"{path}: expected a list {name!r} in page {number}, found {type(items).__name__}")
        before = len(found)
        for index, item in enumerate(items):
            try:
                if not isinstance(item, dict):
                    raise UnseenError(f"expected an object, found {type(item).__name__}")  # noqa: TRY301
                found[str(item.get(key))] = parse(item)
            except UnseenError as error:
                raise UnseenError(f"{path}: page {number}, {name}[{index}]: {error}") from error
        if not (document.get(f"{name}_links") or document.get("next")):
            return tuple(found[each] for each in sorted(found))
        if not items or len(found) == before:
            raise UnseenError(f"{path}: page {number} brings nothing new and says that another follows: the listing goes in circles")
        if len(found) > _MOST_ITEMS:
            raise UnseenError(f"{path}: expected at most {_MOST_ITEMS} {name}, found more")
        marker = str(items[-1].get(key))
    raise UnseenError(f"{path}: expected at most {_MOST_PAGES} pages, found more")
