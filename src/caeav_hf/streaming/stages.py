"""Stages of a bounded pipeline: threads that pass items through channels of limited length."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Stopped(Exception):  # noqa: N818
    """The pipeline ends; a stage that meets this returns."""


class TimedOut(Exception):  # noqa: N818
    """Nothing arrived within the time limit."""


class Failure:
    """An error of a stage on its way to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Stages:
    """
    Threads with channels between them. On leaving the `with`, all stages end; a thread that waits for a source which
    never answers is left behind as a daemon.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.is_stopped = False

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()

    def channel(self, length: int) -> "Channel":
        """Return a channel that holds at most `length` items."""
        return Channel(self, length)

    def run(self, stage: Callable[[], None], failures: "Channel", name: str) -> None:
        """Run a stage in a thread; an error of it goes into the channel `failures`."""

        def work() -> None:
            try:
                stage()
            except Stopped:
                pass
            except BaseException as error:
                with contextlib.suppress(Stopped):
                    failures.put(Failure(error))

        threading.Thread(target=work, name=f"caeav-{name}", daemon=True).start()


class Channel:
    """A queue between two stages."""

    def __init__(self, stages: Stages, length: int) -> None:
        self._stages, self.length = stages, length
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        """Add an item, once there is room."""
        changed = self._stages.changed
        with changed:
            changed.wait_for(lambda: len(self._items) < self.length or self._stages.is_stopped)
            self._add(item)

    def put_at_once(self, item: Any, drops: Callable[[Any], bool], count: int) -> None:
        """
        Add an item without waiting. If there is no room, drop the oldest items for which `drops` is true, `count` of
        them.
        """
        with self._stages.changed:
            if len(self._items) >= self.length:
                kept: deque[Any] = deque()
                for waiting in self._items:
                    if count and drops(waiting):
                        count -= 1
                    else:
                        kept.append(waiting)
                self._items = kept
            self._add(item)

    def get(self, timeout: float | None = None) -> Any:
        """
        Return the next item, once there is one.

        Raises:
            TimedOut: There was none for `timeout` seconds.
        """
        changed = self._stages.changed
        with changed:
            limit = None if timeout is None else time.monotonic() + timeout
            while not self._items:
                if self._stages.is_stopped:
                    raise Stopped
                # Waiting in slices lets the main thread notice Ctrl-C on all systems.
                left = 1.0 if limit is None else min(1.0, limit - time.monotonic())
                if left <= 0:
                    raise TimedOut
                changed.wait(left)
            item = self._items.popleft()
            changed.notify_all()
            return item

    def get_waiting(self, count: int, accepts: Callable[[Any], bool]) -> list[Any]:
        """Return up to `count` next items without waiting, as long as `accepts` is true for them."""
        items: list[Any] = []
        with self._stages.changed:
            while self._items and len(items) < count and accepts(self._items[0]):
                items.append(self._items.popleft())
            self._stages.changed.notify_all()
        return items

    def _add(self, item: Any) -> None:
        if self._stages.is_stopped:
            raise Stopped
        self._items.append(item)
        self._stages.changed.notify_all()
