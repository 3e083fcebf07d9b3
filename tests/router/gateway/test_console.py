"""The console's files: what is served, under which rules, and that nothing else is."""

from __future__ import annotations

import re

import httpx
import pytest

from router.gateway.console import console_files
from router.settings import HttpSection

LIMIT_BYTES = 200 * 1024


async def test_every_file_comes_with_its_type_and_an_etag(asgi: httpx.AsyncClient) -> None:
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    names = console_files()
    assert {"index.html", "console.css", "main.js"} <= names.keys()
    for name, body in names.items():
        answer = await asgi.get(f"/console/{name}")
        assert answer.status_code == 200
        assert answer.content == body
        assert answer.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
        tag = answer.headers["etag"]
        again = await asgi.get(f"/console/{name}", headers={"if-none-match": f'"x", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        plain = await asgi.get(f"/console/{name}", headers={"accept-encoding": "identity"})
        assert plain.content == body
        assert "content-encoding" not in plain.headers


async def test_the_policy_lets_nothing_in_from_elsewhere(asgi: httpx.AsyncClient) -> None:
    answer = await asgi.get("/console/")
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    for name, body in console_files().items():
        text = body.decode()
        outside = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text))
        assert outside <= {"http://www.w3.org"}, name
        assert "innerHTML" not in text
        assert "insertAdjacentHTML" not in text
        assert not re.search(r"\bstyle=|\bon[a-z]+=\"", text), name


def palettes() -> list[dict[str, str]]:
    """The colours of each `:root` in the style sheet, in order: light, dark, dark as chosen."""
    css = console_files()["console.css"].decode()
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", css)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative, by WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_stand_out_from_what_they_stand_on() -> None:
    light, dark, chosen = palettes()
    assert dark == chosen
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        pairs = [
            (text, ground)
            for ground in ("paper", "raised", "sunk")
            for text in ("ink", "dim", "accent", "good", "warn", "bad")
        ]
        pairs += [("on-accent", "accent"), ("bad", "bad-tint"), ("ink", "bad-tint")]
        pairs += [("good", "good-tint")]
        pairs += [("ink", f"tint-{use}") for use in ("none", "low", "mid", "high")]
        for text, ground in pairs:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        # Borders of what can be used, and what the drawing tells by colour.
        for mark in ("edge", "accent", "use-low", "use-high"):
            assert contrast(colours[mark], colours["paper"]) >= 3, mark


def test_it_is_small() -> None:
    assert sum(map(len, console_files().values())) < LIMIT_BYTES


@pytest.mark.parametrize(
    "path",
    [
        "/console/../settings.py",
        "/console/%2e%2e/settings.py",
        "/console/..%2fsettings.py",
        "/console/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/console//etc/passwd",
        "/console/__init__.py",
        "/console/index.html%00.png",
        "/console/index.html/",
        "/console/INDEX.HTML",
    ],
)
async def test_other_paths_lead_nowhere(asgi: httpx.AsyncClient, path: str) -> None:
    request = httpx.Request("GET", httpx.URL("http://gateway", raw_path=path.encode()))
    answer = await asgi.send(request)
    assert answer.status_code in (404, 307), path
    assert b"root:" not in answer.content


async def test_it_is_read_only_and_found_without_the_slash(asgi: httpx.AsyncClient) -> None:
    assert (await asgi.post("/console/main.js")).status_code == 405
    head = await asgi.head("/console/")
    assert (head.status_code, head.content) == (200, b"")
    beginning = await asgi.get("/console")
    assert (beginning.status_code, beginning.headers["location"]) == (308, "console/")


class TestSwitchedOff:
    @pytest.fixture
    def settings(self) -> HttpSection:
        return HttpSection(port=0, console=False)

    async def test_there_is_nothing(self, asgi: httpx.AsyncClient) -> None:
        assert (await asgi.get("/console/")).status_code == 404


class TestWithKeys:
    @pytest.fixture
    def settings(self) -> HttpSection:
        return HttpSection(port=0, api_keys=("0" * 64,))

    async def test_the_files_need_none_and_the_data_does(self, asgi: httpx.AsyncClient) -> None:
        assert (await asgi.get("/console/")).status_code == 200
        assert (await asgi.get("/v1/helix/cluster")).status_code == 401
        assert (await asgi.post("/v1/helix/whatif", json={"gpu": "L4"})).status_code == 401
