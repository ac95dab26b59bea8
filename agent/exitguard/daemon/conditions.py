"""What is wrong for now, each thing said once: when it begins, when its reason changes, and when it is over."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Conditions:
    """Conditions by name, with the reason that was told last. `begun` and `over` tell: (name, reason)."""

    begun: Callable[[str, str], None]
    over: Callable[[str, str], None]
    _reasons: dict[str, str] = field(default_factory=dict)

    def holds(self, name: str, reason: str | None) -> bool:
        """The condition holds for `reason`, or does not hold (None). Whether that is news."""
        before = self._reasons.get(name)
        if reason == before:
            return False
        if reason is None:
            self.over(name, self._reasons.pop(name))
        else:
            self._reasons[name] = reason
            self.begun(name, reason)
        return True

    def hold(self, name: str) -> bool:
        """Whether the condition holds, for whatever reason."""
        return name in self._reasons

    @property
    def worst(self) -> str | None:
        """The reason of one condition that holds, the longest standing; None where nothing is wrong."""
        return next(iter(self._reasons.values()), None)
