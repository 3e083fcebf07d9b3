"""An event loop's next turn, for tests without a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Turns:
    """What is to be called in the next turn waits until a test says that it comes."""

    calls: list[Callable[[], None]] = field(default_factory=list, kw_only=True)

    def soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()
