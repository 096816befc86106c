"""Errors of the package, with one base class to catch them all."""


class CaeAvError(ValueError):
    """Base class of all errors. The message names the argument or file at fault and says what was expected."""


class MediaError(CaeAvError):
    """A clip cannot be decoded into frames and sound. The message begins with the name of the file."""


class DataError(CaeAvError):
    """An annotation file, data set or row does not have the documented form."""
