"""What a lab writes into a page between two lines of it, and reads again. Pure."""


class NoPlaceError(Exception):
    """The page lacks the lines between which the block stands."""


def with_block(page: str, block: str, begin: str, end: str) -> str:
    """The page with `block` between its lines `begin` and `end`. Raises NoPlaceError."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise NoPlaceError(f"the page has no place for the table: put these two lines where it is to stand:\n{begin}\n{end}")
    return f"{before}{begin}\n\n{block}\n{end}{after}"


def block_in(page: str, begin: str, end: str) -> str:
    """What stands in the page between the two lines. Raises NoPlaceError."""
    _, found_begin, rest = page.partition(begin)
    block, found_end, _ = rest.partition(end)
    if not found_begin or not found_end:
        raise NoPlaceError(f"the page has no such lines:\n{begin}\n{end}")
    return block
