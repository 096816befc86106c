"""The errors of the package: one base class, so that a caller can catch everything that is caeav_hf's own."""


class CaeAvError(ValueError):
    """Base class. The message names the argument or file at fault and says what was expected."""


class MediaError(CaeAvError):
    """A clip that cannot be decoded into frames and sound; the message begins with the name of the file."""


class DataError(CaeAvError):
    """An annotation file, data set or row that does not have the documented form."""
