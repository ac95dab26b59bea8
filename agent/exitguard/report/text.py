"""Text from outside made harmless and visible: names of domains, flavors and files are written by tenants.

A terminal obeys control characters, reorders text at bidirectional controls and hides zero-width ones; so each of those is
printed as an escape, and nothing else is changed but the length.
"""

import unicodedata

DEFAULT_LIMIT_CHARACTERS = 200
_MAX_MARKS = 2  # combining marks on one letter: real orthographies need two, more pile up over the lines above

#: Control, format (bidirectional, zero-width, tags), lone surrogate, private use, unassigned, line and paragraph separator.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: Blank or ignorable by Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt) or by looks, in other categories.
_ESCAPED_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
#: What our own sentences use beyond ASCII, for terminals that cannot show it.
_PLAIN = str.maketrans(
    {
        "\u2026": "...",
        "\u2192": "->",
        "\u2014": "-",
        "\u2013": "-",
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u00b7": "|",
        "\u00d7": "x",
        "\u2265": ">=",
        "\u2264": "<=",
    }
)


def visible(text: str, *, limit_characters: int = DEFAULT_LIMIT_CHARACTERS, ascii_only: bool = False) -> str:
    r"""`text` on one line, every character that acts or hides written as `\x1b`, `\u202e` or `\U000e0001`.

    At most `limit_characters` long; what is longer ends in an ellipsis. With `ascii_only` other scripts are escaped too.
    What it gives stays as it is when given again.
    """
    if len(text) <= limit_characters and text.isascii() and text.isprintable():
        return text  # nearly all there are
    # The limit bounds the work as well: no character becomes shorter, so nothing beyond it can be shown.
    head = text[: limit_characters + 1]
    if ascii_only:
        head = head.translate(_PLAIN)
    pieces: list[str] = []
    marks = 0
    for character in head:
        marks = marks + 1 if unicodedata.category(character).startswith("M") else 0
        pieces.append(_escaped(character) if _must_escape(character, ascii_only=ascii_only) or marks > _MAX_MARKS else character)
    return _shortened(pieces, cut=len(text) > limit_characters, limit=limit_characters, ellipsis="..." if ascii_only else "\u2026")


def plain(text: str) -> str:
    """Our own typography in ASCII: arrows, dashes, quotation marks and ellipses; other characters stay."""
    return text.translate(_PLAIN)


def _must_escape(character: str, *, ascii_only: bool) -> bool:
    if character == " ":
        return False
    if character.isascii():
        return not character.isprintable()
    if ascii_only:
        return True
    category = unicodedata.category(character)
    # A space that is not U+0020 looks like one and is not: two names must not look alike.
    return category in _ESCAPED_CATEGORIES or category == "Zs" or character in _ESCAPED_BLANKS or _is_variation_selector(character)


def _is_variation_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _escaped(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:  # noqa: PLR2004 - what two hex digits hold
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - what four hex digits hold


def _shortened(pieces: list[str], *, cut: bool, limit: int, ellipsis: str) -> str:
    """The pieces joined, no piece torn, within the limit; an ellipsis where anything is missing."""
    whole = "".join(pieces)
    if not cut and len(whole) <= limit:
        return whole
    room = limit - len(ellipsis)
    kept: list[str] = []
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + ellipsis
