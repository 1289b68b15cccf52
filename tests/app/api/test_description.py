"""The API's description: valid, complete, and with the envelope as its one error."""

from typing import Any

import pytest

from tests.app.api.conftest import Server

Document = dict[str, Any]


@pytest.fixture
def document(shared_server: Server) -> Document:
    return dict(shared_server.http("GET", "/openapi.json").json())


def operations(document: Document) -> list[Document]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def references(value: object) -> set[str]:
    """All that `$ref` names below `value`."""
    if isinstance(value, list):
        return {name for inner in value for name in references(inner)}
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return own | {name for inner in value.values() for name in references(inner)}


def test_every_operation_has_a_name_of_its_own(document: Document) -> None:
    names = [operation["operationId"] for operation in operations(document)]
    assert len(names) == len(set(names)) == 37


def test_every_reference_leads_somewhere(document: Document) -> None:
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= schemas


def test_the_envelope_is_the_one_error(document: Document) -> None:
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    for operation in operations(document):
        others = operation["responses"].keys() - {"200", "206", "304"}
        assert others == {"default"}, operation["operationId"]
        content = operation["responses"]["default"]["content"]
        assert content == {"application/json": {"schema": envelope}}
    schemas = document["components"]["schemas"]
    assert set(schemas["ErrorEnvelope"]["required"]) == {"error"}
    assert set(schemas["ErrorBody"]["required"]) == {"message", "type", "param", "code"}
    assert not any("Validation" in name for name in schemas)


def test_every_key_of_an_answer_is_required(document: Document) -> None:
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema and schema.get("additionalProperties") is not False:
            assert set(schema["required"]) == set(schema["properties"]), name


def test_links_lead_to_operations_and_their_parameters(document: Document) -> None:
    by_name = {operation["operationId"]: operation for operation in operations(document)}
    num_links = 0
    for operation in operations(document):
        for link in operation["responses"]["200"].get("links", {}).values():
            target = by_name[link["operationId"]]
            names = {parameter["name"] for parameter in target.get("parameters", [])}
            assert set(link.get("parameters", {})) <= names
            assert "requestBody" not in link or "requestBody" in target
            num_links += 1
    assert num_links == 21
