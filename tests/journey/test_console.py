"""The web console in a real browser, before a live cluster and before pictures of large ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router import what_if, what_if_desk
from router.what_if import Question
from tests.console_browser import (
    CLUSTER,
    REQUESTS,
    Browser,
    expect,
    fits,
    pictured,
    sync_api,
)
from tests.console_world import KEY, WAIT_S, large_picture, large_requests, world
from tests.held_steps import HeldSteps, held_steps

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'

pytestmark = [
    pytest.mark.journey,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def patient_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context in which an answer lasts until somebody stops it."""
    folder = tmp_path_factory.mktemp("patient") / "tiny-llama"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16384}))
    return folder


@pytest.fixture(scope="module")
def browser(patient_folder: Path) -> Iterator[Browser]:
    # Before the cluster's thread is there: what Playwright starts does not like to share a fork.
    with sync_api.sync_playwright() as playwright:
        args = [*ARGS, "--no-sandbox"] if os.geteuid() == 0 else ARGS
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        try:
            with world(patient_folder) as live:
                yield Browser(chromium, live)
        finally:
            chromium.close()


def test_a_key_is_asked_for_and_stays_in_the_tab(browser: Browser) -> None:
    with browser.open(key=None, wait=False) as seen:
        page = seen.page
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        page.keyboard.type("sk-wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_contain_text("not one of this server's")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#state")).to_have_text("Serving")
        kept = page.evaluate("[Object.values(sessionStorage), Object.values(localStorage)]")
        assert kept == [[KEY], []]
        assert not any("sk-" in url for url in seen.urls)
        assert page.evaluate("document.cookie") == ""


def test_it_shows_the_cluster_as_it_is(browser: Browser) -> None:
    with browser.open() as seen:
        page = seen.page
        expect(page.locator("#state")).to_have_text("Serving")
        rows = page.locator("#node-rows tr")
        expect(rows).to_have_count(4)
        expect(rows.filter(has_text="alpha")).to_contain_text("eu-west")
        expect(rows.filter(has_text="delta")).to_contain_text("2–5")
        drawing = page.locator("#drawing svg")
        expect(drawing).to_contain_text("us-east")
        assert drawing.locator(".bar").count() == 4
        assert drawing.locator(".link").count() >= 5
        assert "4 nodes in 2 regions over 6 layers" in drawing.get_attribute("aria-label")
        expect(page.locator("#cap")).to_contain_text("tokens/s")
        expect(page.locator("#event-rows")).to_contain_text("joined")
        page.get_by_text("Links as a table").click()
        expect(page.locator("#link-rows")).to_contain_text("router")
        # Without a chat nothing has been asked for beyond reading.
        assert seen.asked("chat/completions") == 0


def test_a_chat_streams_and_its_request_is_seen(browser: Browser) -> None:
    def go_on(route: Any) -> None:
        # The tiny model ends its answers wherever chance will have it.
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))

    cluster = browser.world.cluster

    async def answering(held: HeldSteps) -> None:
        """Some of the answer comes; the rest waits until the page has been looked at."""
        held.open()
        sessions = cluster.app.core.sessions
        await cluster.until(lambda: any(len(s.output) > 20 for s in sessions().values()), "some")
        held.shut()

    with browser.open(routes={"**/v1/chat/completions": go_on}) as seen:
        page = seen.page
        page.get_by_label("Most tokens").fill("15000")
        page.get_by_label("Message").fill("Hello!")
        with held_steps(cluster) as held:
            # Routes are taken while this thread waits for the page, not while it waits for others:
            # the request has to be past them first.
            with page.expect_response("**/v1/chat/completions"):
                page.keyboard.press("Enter")
            browser.world.run(lambda: answering(held))
            request = page.locator("#request-rows tr").first
            expect(request).to_contain_text("alpha")
            request.get_by_role("button").click()
            expect(page.locator("#trace-answer")).to_contain_text("first token after")
            expect(page.locator("#trace-answer table")).to_contain_text("alpha")
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#chat-status")).to_contain_text("Stopped.")
        assert page.locator("#chat-log li").count() == 2
        page.get_by_label("Most tokens").fill("5")
        page.get_by_label("Message").fill("Again")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#chat-status")).to_contain_text(re.compile(r"\d tokens?; first after"))
        expect(page.locator("#charts")).to_contain_text("median")
        expect(page.locator("#requests-empty")).to_be_visible()


def test_a_long_answer_leaves_the_page_its_time(browser: Browser) -> None:
    # Laid out token by token these took minutes, in which no click was seen.
    tokens = [f" word{n}" for n in range(15_000)]
    events = [json.dumps({"choices": [{"delta": {"content": token}}]}) for token in tokens]
    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])

    def answer(route: Any) -> None:
        route.fulfill(body=body, content_type="text/event-stream")

    with browser.open(routes={"**/v1/chat/completions": answer}) as seen:
        page = seen.page
        page.get_by_label("Message").fill("Go on")
        page.keyboard.press("Enter")
        expect(page.locator("#chat-status")).to_contain_text("15,000 tokens; first after")
        assert page.locator("#chat-log .said").last.text_content() == "".join(tokens)


def test_what_cannot_be_asked_is_refused_in_words(browser: Browser) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=browser.world.url, headers=headers, timeout=240) as client:
        choices = client.get("/v1/helix/whatif").json()
        assert "H100" in choices["gpus"]
        assert choices["regions"] == ["eu-west", "us-east"]
        for body, status, word in (
            ({"gpu": "H1000", "region": "eu-west"}, 400, "H100"),
            ({"gpu": "H100", "region": "mars"}, 400, "eu-west, us-east"),
            ({"gpu": "H100"}, 400, "regions"),
            ({"gpu": "H100", "region": "eu-west", "count": 2}, 400, "count"),
            ({"gpu": ["H100"]}, 400, "gpu"),
            ({"gpu": "H" * 5000}, 413, "larger"),
        ):
            answer = client.post("/v1/helix/whatif", json=body)
            assert answer.status_code == status, answer.text
            assert word in answer.json()["error"]["message"]
        assert client.post("/v1/helix/whatif", content=b"{}").status_code == 415


def test_one_more_gpu_is_worked_out(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = threading.Event()

    def question(*asked: Any) -> Question:
        assert refused.wait(WAIT_S)
        return what_if.question(*asked)

    monkeypatch.setattr(what_if_desk, "question", question)
    with browser.open() as seen:
        page = seen.page
        expect(page.locator("#whatif-region option")).to_have_count(2)
        page.get_by_role("combobox", name="GPU").select_option("H100")
        page.get_by_role("combobox", name="Region").select_option("us-east")
        page.get_by_role("button", name="What if?").click()
        answer = page.locator("#whatif-answer")
        # One at a time.
        expect(answer).to_contain_text("Working it out")
        headers = {"authorization": f"Bearer {KEY}"}
        url, body = browser.world.url + "/v1/helix/whatif", {"gpu": "L4", "region": "eu-west"}
        second = httpx.post(url, json=body, headers=headers)
        assert second.json()["error"]["code"] == "what_if_busy"
        assert int(second.headers["retry-after"]) >= 1
        refused.set()
        answer.locator(".bars").wait_for()
        expect(answer).to_contain_text("One more H100 in us-east on layers")
        expect(answer).to_contain_text("An estimate")
        expect(answer).to_contain_text("datasheet")


def test_texts_of_others_stay_texts(browser: Browser) -> None:
    picture = large_picture()
    picture["router"]["model"] = picture["doing"] = picture["verdict"] = HOSTILE
    picture["bottleneck"]["text"] = HOSTILE
    for name in ("node", "device", "kind", "region", "suspect"):
        picture["nodes"][0][name] = HOSTILE
    picture["links"][0]["sender"] = picture["nodes"][0]["node"]
    picture["happenings"][0] |= {"node": HOSTILE, "text": HOSTILE, "kind": HOSTILE}
    requests = large_requests()
    requests["requests"][0] |= {"id": HOSTILE, "state": HOSTILE, "at": HOSTILE}
    requests["requests"][0]["route"][0]["node"] = HOSTILE
    with browser.open(routes=pictured(picture, requests)) as seen:
        page = seen.page
        page.get_by_text("Links as a table").click()
        for place in ("#model", "#cap", "#doing", "#drawing", "#node-rows", "#event-rows"):
            expect(page.locator(place)).to_contain_text("<img src=x")
        expect(page.locator("#request-rows th").first).to_have_text(HOSTILE)
        expect(page.locator("#link-rows")).to_contain_text("<img src=x")
        page.locator("#node-rows").get_by_role("button").first.click()
        expect(page.get_by_role("dialog")).to_contain_text("<img src=x")
        page.keyboard.press("Escape")
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2
        assert page.evaluate("window.pwned === undefined")
        assert not any(url.endswith("/x") for url in seen.urls)


def test_fifty_nodes_are_grouped_filtered_and_opened(browser: Browser) -> None:
    with browser.open(routes=pictured(large_picture(), large_requests())) as seen:
        page = seen.page
        bars = page.locator("#drawing .bar:not(.next)")
        group = page.get_by_label("Group alike")
        expect(group).to_be_checked()
        grouped = bars.count()
        assert grouped < 40
        expect(page.locator("#drawing")).to_contain_text("2 × A100-80")
        page.locator("#drawing .words .name", has_text="2 × A100-80").first.click()
        expect(bars).to_have_count(grouped + 1)
        group.uncheck()
        expect(bars).to_have_count(50)
        expect(page.locator("#node-rows tr")).to_have_count(50)
        page.get_by_role("searchbox").fill("us-central l4")
        expect(bars).to_have_count(20)
        expect(page.locator("#nodes-count")).to_have_text("20 of 50")
        page.get_by_role("searchbox").fill("suspect")
        expect(page.locator("#node-rows tr")).to_have_count(1)
        page.get_by_role("searchbox").fill("nowhere")
        expect(page.locator("#flow-empty")).to_have_text("No node matches the filter.")
        expect(page.locator("#request-rows tr")).to_have_count(20)
        page.get_by_role("button", name="Show 60 of 323").click()
        expect(page.locator("#request-rows tr")).to_have_count(60)


@pytest.mark.parametrize("many", [False, True], ids=["live", "fifty"])
def test_a_telephone_shows_it_without_scrolling_sideways(browser: Browser, many: bool) -> None:
    routes = pictured(large_picture(), large_requests()) if many else {}
    small = {"width": 375, "height": 812}
    with browser.open(routes=routes, viewport=small) as seen:
        assert fits(seen.page)
        seen.page.get_by_text("Links as a table").click()
        assert fits(seen.page)
        seen.page.set_viewport_size({"width": 900, "height": 700})
        expect(seen.page.locator("#drawing svg")).not_to_have_attribute("width", "347")
        assert fits(seen.page)


def test_colours_follow_the_system_until_they_are_chosen(browser: Browser) -> None:
    with browser.open(color_scheme="dark") as seen:
        page = seen.page
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(paper)
        page.emulate_media(color_scheme="light")
        light = page.evaluate(paper)
        assert dark != light
        button = page.locator("#theme")
        expect(button).to_have_text("Auto")
        button.click()
        button.click()
        expect(button).to_have_text("Dark")
        assert page.evaluate(paper) == dark
        page.reload()
        expect(button).to_have_text("Dark")
        assert page.evaluate(paper) == dark


def test_it_can_be_used_by_keys_and_read_aloud(browser: Browser) -> None:
    with browser.open() as seen:
        page = seen.page
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the cluster")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        drain = page.get_by_role("button", name="Drain beta")
        drain.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        page.keyboard.press("Escape")
        expect(drain).to_be_focused()
        nameless = page.evaluate(
            """[...document.querySelectorAll("button, input, select, textarea, a")].filter((e) =>
                !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length)
            ).map((e) => e.id)"""
        )
        assert nameless == []
        uncaptioned = "[...document.querySelectorAll('table')].filter((t) => !t.caption).length"
        assert page.evaluate(uncaptioned) == 0
        for role in ("banner", "main", "contentinfo", "navigation"):
            expect(page.get_by_role(role)).to_have_count(1)
        levels = page.evaluate(
            "[...document.querySelectorAll('main h2')].every((h) => h.closest('section, dialog'))"
        )
        assert levels
        assert page.locator("[aria-live=polite]").count() == 1


def test_a_key_that_may_not_operate_sees_the_rest(browser: Browser) -> None:
    said = "the key of guest may not operate the cluster"
    refusal = {"error": {"message": said, "type": "invalid_request_error", "code": "forbidden"}}

    def refuse(route: Any) -> None:
        route.fulfill(status=403, json=refusal)

    with browser.open(routes={REQUESTS: refuse, "**/v1/helix/replan": refuse}) as seen:
        page = seen.page
        expect(page.locator("#state")).to_have_text("Serving")
        expect(page.locator("#requests-empty")).to_have_text(said)
        page.get_by_role("button", name="Re-plan").click()
        page.get_by_role("dialog").get_by_role("button", name="Re-plan").click()
        expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible()
        page.get_by_role("button", name="Close this note").click()
        expect(page.locator(".answer")).to_have_count(0)


def test_it_rests_while_paused_or_hidden(browser: Browser) -> None:
    hidden = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    with browser.open() as seen:
        page = seen.page
        page.clock.run_for(3_000)
        page.get_by_role("button", name="Pause").click()
        page.wait_for_load_state("networkidle")
        before = seen.asked("/cluster")
        page.clock.run_for(30_000)
        assert seen.asked("/cluster") == before
        with page.expect_request(CLUSTER):
            page.get_by_role("button", name="Go on").click()
        page.evaluate(f"{hidden % 'true'}; {tell}")
        page.clock.run_for(2_000)
        page.wait_for_load_state("networkidle")
        before = seen.asked("/cluster")
        page.clock.run_for(30_000)
        assert seen.asked("/cluster") == before
        with page.expect_request(CLUSTER):
            page.evaluate(f"{hidden % 'false'}; {tell}")


def test_a_router_that_is_away_is_told_of_and_found_again(browser: Browser) -> None:
    with browser.open() as seen:
        page = seen.page
        page.route("**/v1/**", lambda route: route.abort())
        expect(page.locator("#trouble")).to_contain_text("The router does not answer.")
        expect(page.locator("#state")).to_have_text("No answer")
        expect(page.locator("#node-rows tr")).to_have_count(4)
        page.unroute("**/v1/**")
        page.clock.run_for(15_000)
        expect(page.locator("#state")).to_have_text("Serving")
        expect(page.locator("#trouble")).to_be_hidden()


def test_a_node_is_drained_and_the_answer_said(browser: Browser) -> None:
    """The last one here: the cluster is another afterwards."""
    with browser.open() as seen:
        page = seen.page
        page.get_by_role("button", name="Drain alpha").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert not any("drain" in url for url in seen.urls)
        page.get_by_role("button", name="Re-plan").click()
        page.get_by_role("dialog").get_by_role("button", name="Re-plan").click()
        expect(page.locator("#doing")).to_contain_text("Last search:")
        page.get_by_role("button", name="Drain beta").click()
        page.get_by_role("dialog").get_by_role("button", name="Drain beta").click()
        expect(page.locator(".answer")).to_contain_text("beta is told to leave.")
        expect(page.locator("#event-rows")).to_contain_text("is leaving")
        expect(page.locator("#node-rows tr")).to_have_count(3)
