"""The page of the HTTP API, from the application's own OpenAPI document."""

import json
import tempfile
from pathlib import Path
from typing import Any

from app.db.session import Database
from app.main import create_app
from app.settings import Settings
from app.storage import DirectoryStorage

Node = dict[str, Any]

HEAD = """# HTTP API

What the `openai` SDK calls, and what goes beyond it. The service itself serves this description as an OpenAPI
document at `/openapi.json`. With keys, every `/v1` request needs `Authorization: Bearer KEY`.

Whatever is not the answer is `{"error": {"message", "type", "param", "code"}}`, with the four keys always
there. In objects every key is always there too; what is absent is `null`. Times are unix seconds. Lists are
paged: `after` is the last id of the previous page.
"""


def api_reference(made: str) -> str:
    """made: the first line of a generated page."""
    document = openapi()
    schemas = document["components"]["schemas"]
    parts = [made, HEAD]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(method.upper(), path, operation, schemas))
    objects = sorted(name for name in schemas if name.endswith("Object") or name in _ALSO)
    parts.append("## Objects\n")
    parts += [_object(name, schemas[name]) for name in objects]
    return "\n".join(parts).rstrip() + "\n"


_ALSO = {"BatchProgress", "BatchUsage", "BatchError", "ErrorBody", "RequestCounts", "InputTokensDetails"}


def openapi() -> Node:
    """The document of the application, built on an empty database that is thrown away."""
    with tempfile.TemporaryDirectory() as directory:
        database = Database(f"sqlite:///{Path(directory) / 'empty.db'}")
        app = create_app(Settings(data_dir=Path(directory)), database, DirectoryStorage(Path(directory)))
        document: Node = app.openapi()
        database.dispose()
    return document


def _operation(method: str, path: str, operation: Node, schemas: Node) -> str:
    text = (operation.get("description") or operation["summary"]).replace("\n\n", " ")
    parts = [f"## {method} {path}\n", f"{text}\n"]
    rows = [
        f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {_default(one['schema'])} |"
        for one in operation.get("parameters", [])
        if one["in"] != "path"
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        where = "form" if kind.startswith("multipart") else "body"
        for name, field in schema.get("properties", {}).items():
            needed = "required" if name in schema.get("required", ()) else _default(field)
            rows.append(f"| `{name}` | {where} | {_type(field)} | {needed} |")
    if rows:
        parts.append("| | in | type | default |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    answers = next(iter(operation["responses"]["200"].get("content", {}).values()), {})
    if "$ref" in answers.get("schema", {}):
        parts.append(f"Answers {_type(answers['schema'])}.\n")
    return "\n".join(parts)


def _object(name: str, schema: Node) -> str:
    about = schema.get("description", "").replace("\n\n", "\n")
    rows = [f"| `{field}` | {_type(one)} |" for field, one in schema["properties"].items()]
    table = "| | type |\n|---|---|\n" + "\n".join(rows)
    return f"### {name}\n\n" + (f"{about}\n\n" if about else "") + table + "\n"


def _type(schema: Node) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name.endswith("Object") or name in _ALSO else name
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    least, most = schema.get("minimum"), schema.get("maximum")
    bounds = f" {least} to {most}" if least is not None and most is not None else ""
    return f"{schema.get('type', 'any')}{bounds}"


def _default(schema: Node) -> str:
    return f"`{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""
