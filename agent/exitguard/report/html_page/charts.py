"""Inline SVG: bars that stand beside their numbers in a table, and compliance over time. Numbers in, markup out; no text from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN
from exitguard.report.history import Moment

_WIDTH, _HEIGHT = 240, 14
_CHART_WIDTH, _CHART_HEIGHT = 720, 120
#: From the bottom up, with the class that colours it.
_LAYERS = ((EXIT_COMPLIANT, "good"), (EXIT_UNKNOWN, "doubt"), (EXIT_NOT_COMPLIANT, "bad"), (EXIT_ERROR, "worst"))


@dataclass(frozen=True)
class Bar:
    """A row of a chart: what, how many, and the bar that is drawn beside it."""

    name: str
    amount: str
    drawing: Markup


def bar(value: float, most: float, kind: str, *, start: float = 0.0) -> Markup:
    """A bar from `start` to `start + value` on a scale up to `most`; the number stands beside it, so it is nothing for a screen reader."""
    scale = _WIDTH / most if most > 0 else 0.0
    width = max(1.0, value * scale) if value > 0 else 0.0
    return Markup(
        '<svg class="bar" viewBox="0 0 {w} {h}" aria-hidden="true" focusable="false"><rect class="track" width="{w}" height="{h}"/>'
        '<rect class="{kind}" x="{x:.1f}" width="{width:.1f}" height="{h}"/></svg>'
    ).format(w=_WIDTH, h=_HEIGHT, kind=kind, x=start * scale, width=width)


def over_time(moments: Sequence[Moment], until: datetime) -> Markup | None:
    """Hosts by state over time, stacked; None where there is nothing to compare."""
    if len(moments) < 2:  # noqa: PLR2004 - one point is no history
        return None
    begin = moments[0].at
    seconds = max(1.0, (until - begin).total_seconds())
    most = max(sum(each.by_exit_code.values()) for each in moments) or 1
    places = [(each.at - begin).total_seconds() / seconds * _CHART_WIDTH for each in moments] + [float(_CHART_WIDTH)]
    areas = []
    below = [0.0] * len(moments)
    for code, kind in _LAYERS:
        above = [low + each.by_exit_code.get(code, 0) / most * _CHART_HEIGHT for low, each in zip(below, moments, strict=True)]
        if above != below:
            top = _steps(places, above)
            bottom = _steps(places, below)
            points = " ".join(f"{x:.1f},{_CHART_HEIGHT - y:.1f}" for x, y in [*top, *reversed(bottom)])
            areas.append(Markup('<polygon class="{}" points="{}"/>').format(kind, points))
        below = above
    return Markup(
        '<svg class="time" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" aria-labelledby="time-title time-text">'
        '<title id="time-title">Hosts by state over time</title>'
        '<desc id="time-text">From {begin} to {until}; the table below has the numbers.</desc>{areas}</svg>'
    ).format(w=_CHART_WIDTH, h=_CHART_HEIGHT, begin=f"{begin:%Y-%m-%d}", until=f"{until:%Y-%m-%d}", areas=Markup("").join(areas))


def _steps(places: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    """Each height holds until the next begins."""
    return [(x, height) for place, height in enumerate(heights) for x in (places[place], places[place + 1])]
