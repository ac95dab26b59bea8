"""Bars and sparklines out of characters: a share of a width, and a row of values."""

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-=+*#@"


def bar(value: float, most: float, width: int, *, unicode: bool = True) -> str:
    """`value` of `most` as a bar of at most `width` columns; something above zero is seen as something."""
    if most <= 0 or value <= 0:
        return ""
    eighths = max(1, round(min(1.0, value / most) * width * 8))
    if not unicode:
        return "#" * max(1, round(eighths / 8))
    full, rest = divmod(eighths, 8)
    return _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")


def sparkline(values: Sequence[float | None], *, unicode: bool = True) -> str:
    """One character a value, by its share of the largest; a space where there is none."""
    levels = _LEVELS if unicode else _ASCII_LEVELS
    most = max((value for value in values if value is not None), default=0.0)
    return "".join(" " if value is None else levels[_level(value, most)] for value in values)


def _level(value: float, most: float) -> int:
    if most <= 0 or value <= 0:
        return 0
    return min(len(_LEVELS) - 1, int(value / most * len(_LEVELS)))
