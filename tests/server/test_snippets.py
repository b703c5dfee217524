"""The programs of the "Code" tab; tests/server/test_fal_clients.py runs them."""

import ast
from typing import Any

import pytest

from pipeline.spec import GenerationRequest
from server.schema import read_input
from server.snippets import curl_snippet, javascript_snippet, python_snippet, wire_input

BASE = "https://studio.example"
SETTINGS: dict[str, Any] = {
    "prompt": "It's done",
    "video_description": "A man",
    "reference_video": "https://studio.example/fal/cdn/files/a.mp4",
    "image": "https://studio.example/fal/cdn/files/b.png",
    "seed": 5,
    "num_frames": 49,
    "fps": 24,
    "negative_prompt": None,
}


def test_a_program_says_only_what_is_not_the_default() -> None:
    """A body has the wire's names, in fal's order, and nothing that would be so anyway."""
    assert list(wire_input(SETTINGS).items()) == [
        ("prompt", "It's done"),
        ("video_url", SETTINGS["reference_video"]),
        ("image_url", SETTINGS["image"]),
        ("video_description", "A man"),
        ("seed", 5),
        ("fps", 24),
    ]


def test_a_program_for_an_empty_form_is_an_example() -> None:
    """What is not filled in yet is shown, and would be a valid call."""
    body = wire_input({"prompt": ""})

    assert read_input(body).fields.keys() == {"prompt", "video_description"}
    assert set(body) == {"prompt", "video_url", "image_url", "video_description"}


def test_every_setting_of_the_page_can_be_sent() -> None:
    """What a program sends is read as the settings it was made of."""
    settings = SETTINGS | {"num_frames": 81, "aspect_ratio": "16:9", "resolution": "720p", "guidance_scale": 3.0}
    settings |= {"num_inference_steps": 9, "reference_start_s": 1.0, "reference_end_s": 2.0, "negative_prompt": "rain"}
    settings |= {"enable_safety_checker": False, "cache_threshold": 0.1, "guided_share": 0.5}
    settings |= {"lora": "fast", "lora_strength": 0.8}

    read = read_input(wire_input(settings))

    asked = {**read.fields, "reference_video": read.reference_video, "image": read.image}
    assert GenerationRequest(**asked) == GenerationRequest(**settings)


@pytest.mark.parametrize("make", [curl_snippet, python_snippet, javascript_snippet])
def test_a_server_with_keys_is_given_one(make: Any) -> None:
    """Where keys are needed the user's own is used; an open server asks for no variable."""
    with_key, without = make(SETTINGS, BASE, needs_key=True), make(SETTINGS, BASE, needs_key=False)

    if make is python_snippet:  # reads FAL_KEY by itself
        assert "setdefault" not in with_key
        assert 'os.environ.setdefault("FAL_KEY"' in without
    else:
        assert "FAL_KEY" in with_key
        assert "FAL_KEY" not in without


def test_the_python_program_leaves_no_host_at_fal() -> None:
    """All five constants are set before the first call, each to an address of ours."""
    program = python_snippet(SETTINGS, BASE, needs_key=True)

    settings, _, _ = program.partition("result =")
    targets = [node for node in ast.parse(settings).body if isinstance(node, ast.Assign)]
    assigned = {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in targets}
    assert assigned == {
        "fal_client.client.RUN_URL_FORMAT": f"{BASE}/fal/run/",
        "fal_client.client.QUEUE_URL_FORMAT": f"{BASE}/fal/queue/",
        "fal_client.client.REALTIME_URL_FORMAT": "wss://studio.example/fal/run/",
        "fal_client.client.REST_URL": f"{BASE}/fal/rest",
        "fal_client.client.CDN_URL": f"{BASE}/fal/cdn",
    }
