"""A command that cannot be carried out, for a reason that the operator can mend."""


class Refusal(Exception):  # noqa: N818 - nothing is in error but the request or its surroundings
    """Sentences for standard error, and the exit code. Raised by verbs; told by cli/edge.py."""

    def __init__(self, *sentences: str, code: int) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences
        self.code = code
