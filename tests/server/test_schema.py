"""Bodies of the fal API: the wire's words on one side, ours on the other."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.errors import Suggestion
from pipeline.spec import GenerationRequest, ModelFacts, limits, settle
from server.job import Fault, Job, JobError, JobResult, JobStatus, LogLine
from server.schema import (
    InvalidBodyError,
    Urls,
    input_schema,
    outcome,
    read_input,
    status,
    submitted,
    webhook_body,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
URLS = Urls("http://host:1")
REQUEST = "http://host:1/fal/queue/fal-ai/video-as-prompt/requests/some-id"
ADDRESSES = {"response_url": REQUEST, "status_url": f"{REQUEST}/status", "cancel_url": f"{REQUEST}/cancel"}
KEY = f"results/{'a' * 32}/output.mp4"

BODY = {
    "prompt": "A statue floats away.",
    "video_description": "A man floats away.",
    "video_url": "https://files.example/a.mp4",
    "image_url": "https://files.example/b.png",
}
WAITING = Job(
    job_id="some-id",
    owner="me",
    status=JobStatus.WAITING,
    position=2,
    request=None,
    progress=None,
    logs=(LogLine("step 3/50", "INFO", NOW),),
    result=None,
    error=None,
    created_at=NOW,
    started_at=None,
    finished_at=None,
)
RUNNING = replace(WAITING, status=JobStatus.RUNNING, position=None)
DONE = replace(RUNNING, status=JobStatus.SUCCEEDED, result=JobResult(KEY, KEY, KEY, 9, {}, 41.71234))
LINE = {"message": "step 3/50", "level": "INFO", "source": "USER", "timestamp": "2026-01-31T12:00:00.000000+00:00"}


def failed(kind: Any, *faults: Fault) -> Job:
    return replace(RUNNING, status=JobStatus.FAILED, error=JobError(kind, "It did not work.", faults))


def faults_of(body: Any) -> list[tuple[str | None, str]]:
    with pytest.raises(InvalidBodyError) as caught:
        read_input(body)
    return [(fault.field, fault.type) for fault in caught.value.faults]


def test_an_input_is_read_by_our_names() -> None:
    """Every field fal documents arrives under the name of the request."""
    given = {"seed": 1, "num_frames": 81, "fps": 24, "enable_safety_checker": False, "aspect_ratio": "16:9"}
    given |= {"resolution": "580p", "guidance_scale": 7.5}

    read = read_input(BODY | given)

    assert (read.reference_video, read.image) == (BODY["video_url"], BODY["image_url"])
    assert read.fields == given | {name: BODY[name] for name in ("prompt", "video_description")}


def test_what_is_left_out_is_left_to_the_request() -> None:
    """Unknown fields are ignored, and null is the default: none is repeated here, nor is the model's own."""
    nothing = dict.fromkeys(("seed", "num_frames", "fps", "aspect_ratio", "resolution", "guidance_scale"))

    read = read_input(BODY | nothing | {"strength": 3, "reference_video": "x"})

    assert read.fields.keys() == {"prompt", "video_description"}


@pytest.mark.parametrize(
    ("facts", "guidance_scale"), [(ModelFacts("14b"), 5.0), (ModelFacts("small", guidance_scale=1.0), 1.0)]
)
def test_guidance_left_out_is_the_models_own(facts: ModelFacts, guidance_scale: float) -> None:
    """5 with the released model, as fal documents."""
    read = read_input(BODY)

    request = GenerationRequest(**read.fields, reference_video=Path("clip.mp4"), image=Path("picture.png"))

    assert settle(request, facts, Random(0)).guidance_scale == guidance_scale


def test_our_own_settings_may_be_sent_too() -> None:
    """What the page can set beyond fal's fields can be sent by our names."""
    more = {"negative_prompt": "rain", "num_inference_steps": 20, "reference_start_s": 1.0, "reference_end_s": 2.0}
    more |= {"cache_threshold": 0.1, "guided_share": 0.5, "lora": "fast", "lora_strength": 0.8}

    assert read_input(BODY | more).fields.items() >= more.items()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prompt": None}, ("prompt", "missing")),
        ({"prompt": "  "}, ("prompt", "string_too_short")),
        ({"prompt": "x" * 4001}, ("prompt", "string_too_long")),
        ({"prompt": 5}, ("prompt", "string_type")),
        ({"video_description": None}, ("video_description", "missing")),
        ({"video_url": None}, ("reference_video", "missing")),
        ({"video_url": 5}, ("reference_video", "string_type")),
        ({"video_url": "file:///etc/passwd"}, ("reference_video", "url_scheme")),
        ({"image_url": "file:uploads/key"}, ("image", "url_scheme")),
        ({"image_url": ""}, ("image", "url_scheme")),
        ({"video_url": "http://[foo/x.mp4"}, ("reference_video", "url_parsing")),
        ({"seed": -1}, ("seed", "greater_than_equal")),
        ({"seed": 1.5}, ("seed", "int_from_float")),
        ({"num_frames": 50}, ("num_frames", "value_error")),
        ({"num_frames": limits("num_frames")[1] + 4}, ("num_frames", "less_than_equal")),
        ({"fps": limits("fps")[0] - 1}, ("fps", "greater_than_equal")),
        ({"aspect_ratio": "1:1"}, ("aspect_ratio", "literal_error")),
        ({"resolution": "4k"}, ("resolution", "literal_error")),
        ({"guidance_scale": "much"}, ("guidance_scale", "float_parsing")),
        ({"enable_safety_checker": "perhaps"}, ("enable_safety_checker", "bool_parsing")),
        ({"reference_start_s": 3, "reference_end_s": 2}, ("reference_end_s", "value_error")),
    ],
)
def test_each_fault_of_an_input_is_found(change: dict[str, Any], fault: tuple[str, str]) -> None:
    """A fault names our field and has pydantic's type."""
    assert faults_of(BODY | change) == [fault]


@pytest.mark.parametrize("body", [[], "text", 5, None, True])
def test_an_input_that_is_no_object_is_one_fault(body: Any) -> None:
    """Any JSON but an object is refused as a whole."""
    assert faults_of(body) == [(None, "dict_type")]


def test_all_faults_are_told_in_the_order_of_the_fields() -> None:
    """A person can mend everything at once."""
    assert faults_of({"video_url": "x", "fps": 0, "prompt": ""}) == [
        ("prompt", "string_too_short"),
        ("reference_video", "url_scheme"),
        ("image", "missing"),
        ("video_description", "missing"),
        ("fps", "greater_than_equal"),
    ]


def test_the_error_of_an_input_names_its_fields() -> None:
    """In one sentence each, for where only a text is shown: the status, and the list of jobs."""
    with pytest.raises(InvalidBodyError) as caught:
        read_input({**BODY, "video_url": None, "num_frames": 50, "fps": 1000})

    assert caught.value.job_error.message == (
        "video_url: Field required. num_frames: A video cannot have 50 frames; try 49 or 53. "
        "fps: Input should be less than or equal to 60."
    )


def test_faults_look_as_fastapi_would_tell_them() -> None:
    """Places are by the wire's names, and nothing of the input is repeated."""
    with pytest.raises(InvalidBodyError) as caught:
        read_input({**BODY, "image_url": "x", "num_frames": 50, "prompt": None})
    job = replace(RUNNING, status=JobStatus.FAILED, error=caught.value.job_error)

    answer = outcome(job, URLS, lambda key: 0)

    scheme = "Input should be a URL that starts with http://, https:// or data:"
    assert answer.status_code == 422
    assert answer.headers == {}
    assert answer.body == {
        "detail": [
            {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"},
            {"loc": ["body", "image_url"], "msg": scheme, "type": "url_scheme"},
            {
                "loc": ["body", "num_frames"],
                "msg": "A video cannot have 50 frames; try 49 or 53.",
                "type": "value_error",
            },
        ]
    }


def test_an_answer_to_a_submit_holds_what_the_clients_need() -> None:
    """Id, position and the three addresses."""
    expected = {"status": "IN_QUEUE", "request_id": "some-id", "gateway_request_id": "some-id", "queue_position": 2}

    assert submitted(WAITING, URLS) == expected | ADDRESSES


@pytest.mark.parametrize(
    ("job", "logs", "expected"),
    [
        (WAITING, None, {"status": "IN_QUEUE", "queue_position": 2}),
        (replace(WAITING, position=None), None, {"status": "IN_QUEUE", "queue_position": 0}),
        (RUNNING, None, {"status": "IN_PROGRESS", "logs": None}),
        (RUNNING, RUNNING.logs, {"status": "IN_PROGRESS", "logs": [LINE]}),
        (DONE, None, {"status": "COMPLETED", "logs": None, "metrics": {"inference_time": 41.712}}),
        (
            failed("cancelled"),
            (),
            {
                "status": "COMPLETED",
                "logs": [],
                "metrics": {},
                "error": "It did not work.",
                "error_type": "client_cancelled",
            },
        ),
        (
            failed("invalid_input"),
            None,
            {"status": "COMPLETED", "logs": None, "metrics": {}, "error": "It did not work."},
        ),
    ],
)
def test_a_status_has_one_of_three_states(job: Job, logs: Any, expected: dict[str, Any]) -> None:
    """Whatever happened, the wire knows IN_QUEUE, IN_PROGRESS and COMPLETED, each with the keys the clients read."""
    assert status(job, URLS, logs) == expected | {"request_id": "some-id"} | ADDRESSES


def test_a_result_is_a_file() -> None:
    """The video has its address, type, name and size."""
    answer = outcome(DONE, URLS, {KEY: 4404019}.__getitem__)

    file = {"url": f"http://host:1/fal/cdn/files/{KEY}", "content_type": "video/mp4"}
    file |= {"file_name": "output.mp4", "file_size": 4404019}  # type: ignore[dict-item]
    assert (answer.status_code, answer.body) == (200, {"video": file})


def test_after_running_out_of_memory_a_program_is_told_what_would_work() -> None:
    """The fields to change, by the wire's names, beside what fal would say."""
    error = JobError("out_of_memory", "Try 33 frames.", suggestion=Suggestion({"num_frames": 33}, "Try 33 frames"))

    answer = outcome(replace(failed("out_of_memory"), error=error), URLS, lambda key: 0)

    assert answer.body == {
        "detail": "Try 33 frames.",
        "error_type": "runner_server_error",
        "suggestion": {"num_frames": 33},
    }


@pytest.mark.parametrize(
    ("kind", "status_code", "error_type"),
    [
        ("cancelled", 499, "client_cancelled"),
        ("start_timeout", 504, "request_timeout"),
        ("worker_lost", 503, "runner_disconnected"),
        ("out_of_memory", 500, "runner_server_error"),
        ("disk_full", 500, "runner_server_error"),
        ("internal", 500, "internal_error"),
    ],
)
def test_an_error_has_fals_code_and_type(kind: Any, status_code: int, error_type: str) -> None:
    """Everything but bad input is a sentence with a type, in the body and in a header."""
    answer = outcome(failed(kind), URLS, lambda key: 0)

    assert (answer.status_code, answer.body) == (
        status_code,
        {"detail": "It did not work.", "error_type": error_type},
    )
    assert answer.headers["X-Fal-Error-Type"] == error_type
    assert ("X-Fal-Request-Timeout-Type" in answer.headers) == (kind == "start_timeout")


def test_an_unsafe_input_is_told_at_its_field() -> None:
    """A hit of the safety checker is a 422 with its own type."""
    job = failed("invalid_input", Fault("image", "This picture is not for us.", "content_policy_violation"))

    [fault] = outcome(job, URLS, lambda key: 0).body["detail"]

    assert (fault["loc"], fault["type"]) == (["body", "image_url"], "content_policy_violation")


def test_a_webhook_holds_the_result() -> None:
    """The payload equals the body of the result."""
    answer = outcome(DONE, URLS, lambda key: 3)

    told = webhook_body(DONE, URLS, lambda key: 3)

    assert (told["status"], told["error"], told["payload"]) == ("OK", None, answer.body)


def test_addresses_are_quoted() -> None:
    """A name with letters of any language gives a valid URL."""
    assert URLS.file(f"uploads/{'a' * 32}/Füße.mp4").endswith("/F%C3%BC%C3%9Fe.mp4")


def test_the_description_tells_the_limits_of_the_request() -> None:
    """Fields, defaults and limits come from the one place that has them; the example is a good input."""
    schema = input_schema()

    frames, fields = schema["properties"]["num_frames"], GenerationRequest.model_fields
    assert schema["required"] == ["prompt", "video_url", "image_url", "video_description"]
    assert (frames["minimum"], frames["maximum"]) == limits("num_frames")
    assert frames["default"] == fields["num_frames"].default
    guidance = {
        name: schema["properties"]["guidance_scale"][name] for name in ("type", "default", "minimum", "maximum")
    }
    assert guidance == {"type": "number", "default": 5.0, "minimum": 1, "maximum": 20}
    assert schema["properties"]["aspect_ratio"]["enum"] == ["9:16", "16:9"]
    assert read_input(schema["example"]).fields["prompt"]
