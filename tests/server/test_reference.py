"""The API's own description, and its place beside the page."""

import asyncio
from pathlib import Path

import httpx
import pytest

from server.api import ahead_of_page
from tests.server.api_calls import INPUT, QUEUE, through_proxy
from tests.server.api_server import APP, forbid_foreign_packets, make_services


def test_the_api_describes_itself(web: httpx.Client) -> None:
    """The description names every endpoint with examples, and the page loads nothing from anywhere."""
    openapi = web.get("/openapi.json").json()
    page = web.get("/docs")

    submit_body = openapi["paths"][f"/queue/{APP}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert submit_body["example"]["prompt"]
    assert openapi["servers"] == [{"url": "/fal"}]
    assert page.headers["content-type"].startswith("text/html")
    for shown in (f"POST /fal/queue/{APP}", "video_description", "CANCELLATION_REQUESTED", "num_frames"):
        assert shown in page.text
    assert "src=" not in page.text
    assert "href=" in page.text
    assert "url(" not in page.text


def test_beside_gradio_our_routes_answer_and_so_does_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Gradio's own app our paths win, also /docs and /openapi.json, and its page stays."""
    import gradio as gr  # late: it takes seconds, and one test needs it

    forbid_foreign_packets(monkeypatch)

    services = make_services(tmp_path)

    async def start() -> tuple[gr.Blocks, str]:
        with gr.Blocks(analytics_enabled=False) as page:
            gr.Markdown("hello")
        ours = {"lifespan": ahead_of_page(services)}
        _, url, _ = page.launch(app_kwargs=ours, ssr_mode=False, prevent_thread_lock=True, quiet=True)
        return page, url

    # Within a loop, or Gradio makes loops of its own and never closes them; a later test would pay for that.
    page, url = asyncio.run(start())

    with httpx.Client(base_url=url, trust_env=False) as web:
        job = web.post(QUEUE, json=INPUT)
        assert (job.status_code, job.headers["x-fal-request-id"]) == (200, job.json()["request_id"])
        assert web.put(job.json()["cancel_url"]).status_code == 202
        assert through_proxy(web, "GET", f"https://queue.fal.run/{APP}/requests/x").status_code == 404
        assert web.get("/docs").text.count(QUEUE)
        assert "/run/" + APP in web.get("/openapi.json").json()["paths"]
        assert "gradio" in web.get("/").text
    page.close()
    services.queue.close()
