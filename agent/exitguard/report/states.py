"""What hosts are called by their exit code, and in which colour of meaning."""

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN
from exitguard.report.page import BAD, DOUBT, GOOD

#: Word and style.
STATES = {
    EXIT_COMPLIANT: ("compliant", GOOD),
    EXIT_NOT_COMPLIANT: ("not compliant", BAD),
    EXIT_UNKNOWN: ("unknown", DOUBT),
    EXIT_ERROR: ("error", "magenta"),
}


def state_word(exit_code: int) -> str:
    """How a host with this exit code is called."""
    return STATES[exit_code][0] if exit_code in STATES else f"exit {exit_code}"
