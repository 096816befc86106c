"""
Run models of any task on videos of any length, files or running sources, in constant memory.

`windows` lays overlapping windows on an absolute grid and joins their scores, `stages` runs decoding, features and the
model side by side with bounded queues between them, `runs` turns segments into intervals that may cross windows, and
`stream` puts these together.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from ..media.segment_stream import Feed, Gap
    from .runs import JoinedResult
    from .stream import stream


__all__ = ["Feed", "Gap", "JoinedResult", "stream"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {".stream": ("stream",), ".runs": ("JoinedResult",), "..media.segment_stream": ("Feed", "Gap")},
)
