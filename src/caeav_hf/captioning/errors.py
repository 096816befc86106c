"""How captioning fails: for one caption, or altogether."""

from ..errors import CaeAvError


# Reasons that may be gone when asked again.
_PASSING = ("rate_limited", "server_error", "timeout", "connection", "malformed", "empty", "refusal")


class CaptioningError(CaeAvError):
    """
    There is no caption for one modality of one clip.

    Args:
        reason: In a word, for the report: rate_limited, server_error, timeout, connection, malformed, empty, refusal,
            rejected, media or stopped.
        message: What happened.
        retry_after: Seconds after which the server wants to be asked again, if it said so.
    """

    def __init__(self, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message, self.retry_after = reason, message, retry_after

    @property
    def is_passing(self) -> bool:
        """Whether asking again may help."""
        return self.reason in _PASSING


class CaptionerUnusableError(CaeAvError):
    """No clip can be captioned: a wrong model name, a missing key, a server that answers nothing."""
