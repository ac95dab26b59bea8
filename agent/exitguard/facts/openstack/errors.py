"""What can go wrong with a cloud's API, worded for the operator."""


class CloudError(Exception):
    """Nothing at all could be asked of the cloud; the message says why, and what to do."""


class UnseenError(Exception):
    """One listing could not be read as a whole; the message is the reason, and `unlock` what would show it."""

    def __init__(self, reason: str, *, unlock: str | None = None) -> None:
        super().__init__(reason)
        self.unlock = unlock


class ForbiddenError(UnseenError):
    """The role may not see it."""


class BadRequestError(UnseenError):
    """The question was refused as it was put: a page after something that is no longer there, for one."""


class TooLargeError(UnseenError):
    """The answer is larger than any that is read."""
