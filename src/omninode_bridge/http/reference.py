"""The page at /docs: the calls, written from the document at /openapi.json. No script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, .method { font-family: ui-monospace, monospace; font-size: .95em; }
section { border-top: 1px solid var(--line); padding: .5rem 0 1rem; }
h2 { font-size: 1.1rem; margin: .8rem 0 .2rem; } h3 { font-size: 1rem; margin: .8rem 0 .2rem; }
.method { display: inline-block; min-width: 4.5em; font-weight: bold; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0; }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--soft); }
th { font-weight: 600; } td:first-child { white-space: nowrap; }
"""


def page(document: dict[str, Any]) -> str:
    """Return the page for an OpenAPI document."""
    info = document["info"]
    body = "".join([*_calls(document["paths"]), "<h1>Shapes</h1>", *_shapes(document["components"]["schemas"])])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f'The same for programs: <a href="/openapi.json">openapi.json</a>.</p>{body}'
    )


def _calls(paths: dict[str, Any]) -> Iterator[str]:
    for path, calls in paths.items():
        for method, call in calls.items():
            yield f'<section id="{escape(call["operationId"])}"><h2><span class=method>{method.upper()}</span> '
            yield f"<code>{escape(path)}</code></h2><p>{escape(call['summary'])}</p>"
            if description := call.get("description"):
                yield f"<p>{escape(description)}</p>"
            if parameters := call.get("parameters"):
                yield _table(
                    ("parameter", "in", "type", ""),
                    [(p["name"], p["in"], _type(p.get("schema", {})), p.get("description", "")) for p in parameters],
                )
            if "requestBody" in call:
                rows = [(kind, _type(body.get("schema", {}))) for kind, body in call["requestBody"]["content"].items()]
                yield _table(("body", "shape"), rows)
            yield _table(("answer", "", "shape"), list(_answers(call["responses"])))
            yield "</section>"


def _answers(responses: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for status, answer in responses.items():
        shapes = [_type(body.get("schema", {})) or kind for kind, body in answer.get("content", {}).items()]
        yield status, answer["description"], ", ".join(dict.fromkeys(shapes))


def _shapes(schemas: dict[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f'<section id="{escape(name)}"><h2>{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>'
        required = set(schema.get("required", ()))
        yield _table(
            ("field", "type", ""),
            [
                (field if field in required else f"{field} (optional)", _type(shape), shape.get("description", ""))
                for field, shape in schema.get("properties", {}).items()
            ],
        )
        yield "</section>"


def _type(schema: dict[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for either in ("anyOf", "oneOf", "allOf"):
        if either in schema:
            return " or ".join(dict.fromkeys(filter(None, map(_type, schema[either]))))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_type(schema.get('items', {})) or 'anything'}"
    return str(schema.get("format", kind))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(_cell(at, text) for at, text in enumerate(row)) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _cell(at: int, text: str) -> str:
    return f"<td><code>{escape(text)}</code></td>" if at == 0 else f"<td>{escape(text)}</td>"
