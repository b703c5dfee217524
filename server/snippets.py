"""The "Code" tab: the settings on the page as a program, for cURL, Python and JavaScript, ready to run against us."""

import json
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline.spec import GenerationRequest
from server.proxy import PROXY_PATH
from server.schema import APP, FIELDS, to_wire

PLACEHOLDERS: Mapping[str, str] = {
    "prompt": "What should happen to the picture",
    "video_description": "What the clip shows",
    "reference_video": "https://example.com/reference.mp4",
    "image": "https://example.com/picture.png",
}


def wire_input(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the body of a call for settings by our names; what is at its default is left out.

    `reference_video` and `image` are URLs, such as those of files uploaded here. What is missing becomes an example.
    """
    values = {**PLACEHOLDERS, **{name: value for name, value in settings.items() if value not in (None, "")}}
    fields = GenerationRequest.model_fields
    return {to_wire(name): values[name] for name in FIELDS if name in values and values[name] != fields[name].default}


def curl_snippet(settings: Mapping[str, Any], base: str, *, needs_key: bool) -> str:
    """Give a shell command that makes a video and prints where it is.

    base: of this server, as Urls has it. needs_key: whether FAL_KEY has to be one of ours.
    """
    authorization = ['  -H "Authorization: Key $FAL_KEY" \\'] if needs_key else []
    lines = [
        "# Answers when the video is done. Ending the command stops the generation.",
        f"curl --fail-with-body {base}/fal/run/{APP} \\",
        *authorization,
        "  -H 'Content-Type: application/json' \\",
        f"  -d {shlex.quote(_json(wire_input(settings)))}",
    ]
    return "\n".join(lines) + "\n"


def python_snippet(settings: Mapping[str, Any], base: str, *, needs_key: bool) -> str:
    """Give a Python program that makes a video with fal-client and prints where it is."""
    websocket_base = urlsplit(base)._replace(scheme="wss" if base.startswith("https:") else "ws").geturl()
    lines = [
        "# pip install fal-client==1.0.3",
        *([] if needs_key else ["import os", ""]),
        "import fal_client",
        "import fal_client.client",
        "",
        "# All of these, before the first call: what is left out goes to the real fal, with your key and files.",
        f'fal_client.client.RUN_URL_FORMAT = "{base}/fal/run/"',
        f'fal_client.client.QUEUE_URL_FORMAT = "{base}/fal/queue/"',
        f'fal_client.client.REALTIME_URL_FORMAT = "{websocket_base}/fal/run/"',
        f'fal_client.client.REST_URL = "{base}/fal/rest"',
        f'fal_client.client.CDN_URL = "{base}/fal/cdn"',
        *(
            []
            if needs_key
            else ['os.environ.setdefault("FAL_KEY", "any")  # the client wants one; this server does not']
        ),
        "",
        "result = fal_client.subscribe(",
        f'    "{APP}",',
        f"    arguments={_python_literal(wire_input(settings))},",
        ")",
        'print(result["video"]["url"])',
    ]
    return "\n".join(lines) + "\n"


def javascript_snippet(settings: Mapping[str, Any], base: str, *, needs_key: bool) -> str:
    """Give a JavaScript module for Node that makes a video with @fal-ai/client and prints where it is."""
    credentials = "process.env.FAL_KEY" if needs_key else '"any"'
    body = _json(wire_input(settings)).replace("\n", "\n  ")
    lines = [
        "// npm install @fal-ai/client@1.10.1",
        'import { fal } from "@fal-ai/client";',
        "",
        "// The object, not just its url: a plain string has no effect in Node, and the calls go to the real fal.",
        "fal.config({",
        f"  credentials: {credentials},",
        f'  proxyUrl: {{ url: "{base}{PROXY_PATH}", when: "always" }},',
        "});",
        "",
        f'const result = await fal.subscribe("{APP}", {{',
        f"  input: {body},",
        "});",
        "console.log(result.data.video.url);",
    ]
    return "\n".join(lines) + "\n"


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False)


def _python_literal(values: Mapping[str, Any]) -> str:
    lines = [f"        {json.dumps(name)}: {value!r}," for name, value in values.items()]
    return "\n".join(["{", *lines, "    }"])
