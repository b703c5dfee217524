"""The page at /docs: the API's OpenAPI description as plain HTML, which loads nothing from anywhere."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

API_DESCRIPTION = (
    "Speaks the HTTP API of fal-ai/video-as-prompt, so that fal's own clients work with this server. "
    "Send “Authorization: Key <your key>” where the server has keys. "
    "Beware: a client that is only half configured calls the real fal without a word; docs/fal-api.md says how to "
    "point each client here."
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1c1e; background: #fff }
h2 { font-size: 1.1rem; margin: 2rem 0 .3rem } h2 code { font-size: 1rem } p { margin: .3rem 0 }
pre, table { background: #f4f4f6; padding: .8rem; border-radius: 6px; overflow: auto; font-size: .9rem }
td, th { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0 }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #18181b } pre, table { background: #27272a }
  a { color: #9cf }
}
"""


def render_reference(openapi: Mapping[str, Any]) -> str:
    """Give the whole page."""
    title = escape(openapi["info"]["title"])
    base = openapi["servers"][0]["url"]
    operations = "\n".join(
        _operation(method, base + path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}: API</h1><p>{escape(openapi['info']['description'])}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a></p>{operations}</body></html>'
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"]
    if body := operation.get("requestBody"):
        schema = body["content"]["application/json"]["schema"]
        parts += [_fields(schema), _example("Body", schema["example"])]
    for code, response in operation["responses"].items():
        for content in response.get("content", {}).values():
            if example := content.get("example"):
                parts.append(_example(f"Answer {code}", example))
    return "".join(parts)


def _fields(schema: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_allowed(field)}</td>"
        f"<td>{'required' if name in schema['required'] else escape(json.dumps(field.get('default')))}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<table><tr><th>Field</th><th>Values</th><th>Default</th><th>Meaning</th></tr>{rows}</table>"


def _allowed(field: Mapping[str, Any]) -> str:
    """Say in a few words what a field may hold."""
    kind = next((option for option in field.get("anyOf", []) if option["type"] != "null"), field)
    if "enum" in kind:
        return escape(", ".join(kind["enum"]))
    lowest, highest, above = kind.get("minimum"), kind.get("maximum"), kind.get("exclusiveMinimum")
    limits = "" if lowest is None else f", from {_plain(lowest)}"
    limits += "" if highest is None else f" to {_plain(highest)}"
    limits += "" if above is None else f", above {_plain(above)}"
    limits += f", at most {kind['maxLength']:,} characters" if "maxLength" in kind else ""
    return escape(str(kind["type"]) + limits)


def _plain(bound: float) -> str:
    """Write a bound without a point where it has no use for one: the description has those of integers as floats."""
    return str(int(bound)) if bound == int(bound) else str(bound)


def _example(title: str, value: Any) -> str:
    return f"<p>{escape(title)}:</p><pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"
