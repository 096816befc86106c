"""Errors of captioning: one caption failed, or none can be written."""

from ..errors import CaeAvError


# Reasons for which a retry may help.
_PASSING = ("rate_limited", "server_error", "timeout", "connection", "malformed", "empty", "refusal")


class CaptioningError(CaeAvError):
    """
    One modality of one clip could not be captioned.

    Args:
        reason: Keyword for the report: rate_limited, server_error, timeout, connection, malformed, empty, refusal,
            rejected, media or stopped.
        message: What happened.
        retry_after: Seconds to wait before a retry, if the server sent them.
    """

    def __init__(self, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message, self.retry_after = reason, message, retry_after

    @property
    def is_passing(self) -> bool:
        """Whether a retry may help."""
        return self.reason in _PASSING


class CaptionerUnusableError(CaeAvError):
    """No clip can be captioned, for instance because of a wrong model name or a missing key."""
