"""Twenty schemas that bound their values, and requests that ask for one of them."""

import json
from typing import Any

Schema = dict[str, Any]

_LINE = {"type": "string", "minLength": 1, "maxLength": 40}
_WORD = {"type": "string", "pattern": "^[A-Za-z]{1,12}$"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 1000}


def _object(required: list[str] | None = None, **properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _some(items: Any, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


SCHEMAS: dict[str, Schema] = {
    "sentiment": _object(label={"enum": ["positive", "neutral", "negative"]}, reason=_LINE),
    "person": _object(
        name=_LINE, age={"type": "integer", "minimum": 0, "maximum": 120}, is_alive={"type": "boolean"}
    ),
    "tags": _some(_WORD, 5, least=2),
    "address": _object(street=_LINE, city=_WORD, zip={"type": "string", "pattern": "^[0-9]{5}$"}),
    "event": _object(
        title=_LINE,
        day={"type": "string", "format": "date"},
        place={"type": ["string", "null"], "maxLength": 30},
    ),
    "order": _object(items=_some(_object(name=_WORD, count=_COUNT), 3, least=1), is_paid={"type": "boolean"}),
    "optional": _object(
        ["title"], title=_LINE, year={"type": "integer", "minimum": 1000, "maximum": 2100}, genre=_WORD
    ),
    "choice": {
        "anyOf": [_object(kind={"const": "cat"}, lives=_COUNT), _object(kind={"const": "dog"}, name=_WORD)]
    },
    "either": {
        "oneOf": [{"type": "string", "maxLength": 30}, {"type": "integer", "minimum": 1, "maximum": 9}]
    },
    "pair": {"type": "array", "prefixItems": [_WORD, _COUNT], "items": False, "minItems": 2},
    "nested": _object(a=_object(b=_object(c=_object(word=_WORD, count=_COUNT)))),
    "identifier": _object(
        id={"type": "string", "format": "uuid"}, address={"type": "string", "format": "ipv4"}
    ),
    "reference": {
        "$defs": {"point": _object(x=_COUNT, y=_COUNT)},
        **_object(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}),
    },
    "rating": _object(
        stars={"enum": [1, 2, 3, 4, 5]},
        price={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 500},
    ),
    "both": {
        "allOf": [
            {"type": "object", "properties": {"name": _LINE}, "required": ["name"]},
            _object(name=_LINE, size=_COUNT),
        ]
    },
    "map": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,8}$": _COUNT},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "verdict": {"enum": ["yes", "no", "it depends", None]},
    "table": _some(_some({"type": "integer", "minimum": 0, "maximum": 9}, 3, least=3), 3, least=1),
    "quote": _object(text={"type": "string", "minLength": 10, "maxLength": 80}, author=_LINE),
    "time": _object(
        hour={"type": "integer", "minimum": 0, "maximum": 23},
        zone={"type": "string", "pattern": "^[A-Z]{3,4}$"},
    ),
}
SUBJECTS = [
    "a lighthouse", "the Moon landing", "a bakery in Lyon", "the violin", "a lost umbrella",
    "photosynthesis", "a chess game", "the city of Kyoto", "a broken bicycle", "winter",
]  # fmt: skip


def messages(name: str, subject: str) -> list[dict[str, str]]:
    """A conversation that asks for a value of the schema."""
    system = f"Answer with JSON that follows this schema, and nothing else: {json.dumps(SCHEMAS[name])}"
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"Give me one {name} about {subject}."},
    ]
