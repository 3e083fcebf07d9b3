"""A browser before the console, for its tests: pages that complain of nothing, and ask nothing of
others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.console_world import KEY, World

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright's Python package is not installed (extra dev)"
)

PATIENCE_MS = 120_000
CLUSTER, REQUESTS = "**/v1/helix/cluster", "**/v1/helix/requests"


@dataclass
class Seen:
    """A page, what it asked for, and what it complained of."""

    page: Any
    urls: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def asked(self, path: str) -> int:
        return sum(url.endswith(path) for url in self.urls)


@dataclass
class Browser:
    chromium: Any
    world: World

    @contextmanager
    def open(self, *, key: str | None = KEY, wait: bool = True, **options: Any) -> Iterator[Seen]:
        """The console in a context of its own; afterwards nothing has complained."""
        options.setdefault("viewport", {"width": 1280, "height": 900})
        routes = options.pop("routes", {})
        context = self.chromium.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        try:
            if key is not None:
                context.add_init_script(
                    f"sessionStorage.setItem('helix_mq.key', {json.dumps(key)})"
                )
            page = context.new_page()
            seen = Seen(page)
            page.on("request", lambda request: seen.urls.append(request.url))
            page.on("pageerror", lambda fault: seen.faults.append(str(fault)))
            page.on("console", lambda said: _complaint(seen, said))
            for pattern, answer in routes.items():
                page.route(pattern, answer)
            # Time goes on as ever, but tests may have it jump.
            page.clock.install()
            page.goto(self.world.url + "/console/")
            if wait:
                page.wait_for_selector("#node-rows tr")
            yield seen
            assert not seen.faults
            assert {url.split("/v1/")[0].split("/console")[0] for url in seen.urls} == {
                self.world.url
            }
        finally:
            context.close()


def _complaint(seen: Seen, said: Any) -> None:
    # Refusals are logged by the browser itself; that the page shows them is what tests look at.
    if said.type == "error" and "Failed to load resource" not in said.text:
        seen.faults.append(said.text)


def expect(locator: Any) -> Any:
    """Patient: CI machines are busy, and other tests run beside these."""
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    return sync_api.expect(locator)


def pictured(picture: dict[str, Any], requests: dict[str, Any] | None = None) -> dict[str, Any]:
    requests = requests or {"total": 0, "requests": []}
    return {
        CLUSTER: lambda route: route.fulfill(json=picture),
        REQUESTS: lambda route: route.fulfill(json=requests),
    }


def fits(page: Any) -> bool:
    """Nothing sticks out sideways."""
    wide, shown = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return bool(wide <= shown)
