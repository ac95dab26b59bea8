"""Why something could not be read."""


class Obstacle(Exception):  # noqa: N818 - nothing is in error: the input does not show what is asked of it
    """Its text is the reason in an operator's words: what, where, and what was expected."""
