"""A selector around another selector, for busy polling, tracing and timing."""

from __future__ import annotations

import selectors
from collections.abc import Mapping
from typing import Any

Ready = list[tuple[selectors.SelectorKey, int]]


class WrappedSelector(selectors.BaseSelector):
    """Passes calls to `inner`. A subclass defines `select`, and overrides what else should differ."""

    def __init__(self, inner: selectors.BaseSelector) -> None:
        self.inner = inner

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As `BaseSelector.register`."""
        return self.inner.register(fileobj, events, data)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As `BaseSelector.modify`."""
        return self.inner.modify(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As `BaseSelector.unregister`."""
        return self.inner.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """As `BaseSelector.get_map`."""
        return self.inner.get_map()

    def fileno(self) -> int:
        """As `EpollSelector.fileno`. Raise AttributeError if `inner` has no descriptor."""
        number: int = self.inner.fileno()  # type: ignore[attr-defined]
        return number

    def close(self) -> None:
        """As `BaseSelector.close`."""
        self.inner.close()
