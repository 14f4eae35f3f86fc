"""Random JSON schemas: hypothesis draws them, hypothesis-jsonschema their parts, as the values of a keyword
have a schema too. Each string, array and number has a bound, so that answers end; none contradicts itself.
"""

import json
import re

import hypothesis
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from random_schemas import PATTERNS, WORDS


def keywords(**values) -> dict:
    """The schema of an object of exactly these keywords."""
    return {
        "type": "object",
        "properties": values,
        "required": list(values),
        "additionalProperties": False,
    }


def whole(low: int, high: int) -> dict:
    return {"type": "integer", "minimum": low, "maximum": high}


TEXT = {"type": "string", "maxLength": 12}
ANY_TEXT = {"anyOf": [{"enum": WORDS}, TEXT]}
SCALAR = {"anyOf": [ANY_TEXT, whole(-(10**6), 10**6), {"type": ["boolean", "null"]}]}
LEAVES = from_schema(
    {
        "anyOf": [
            keywords(type={"enum": ["boolean", "null"]}),
            keywords(type={"const": "integer"}, minimum=whole(-2000, 0), maximum=whole(0, 2000)),
            keywords(type={"const": "integer"}, exclusiveMinimum=whole(-9, -2), exclusiveMaximum=whole(2, 9)),
            keywords(
                type={"const": "integer"},
                minimum=whole(-50, 0),
                maximum=whole(20, 90),
                multipleOf={"enum": [2, 5, 7]},
            ),
            keywords(type={"const": "number"}, minimum=whole(-50, 0), maximum=whole(1, 200)),
            keywords(type={"const": "string"}, minLength=whole(0, 2), maxLength=whole(2, 12)),
            keywords(type={"const": "string"}, pattern={"enum": PATTERNS}),
            keywords(enum={"type": "array", "items": SCALAR, "minItems": 1, "maxItems": 5}),
            keywords(const={"anyOf": [SCALAR, {"type": "array", "items": SCALAR, "maxItems": 3}]}),
            keywords(const={"type": "object", "additionalProperties": SCALAR, "maxProperties": 3}),
        ]
    }
)
NAMES = from_schema(ANY_TEXT)
BOUNDS = from_schema(keywords(minItems=whole(0, 2), maxItems=whole(2, 3)))


def an_object(properties: dict, chosen: list[bool], closed: bool) -> dict:
    required = [name for name, needed in zip(properties, chosen) if needed]
    schema = {"type": "object", "properties": properties, "required": required}
    return {**schema, "additionalProperties": False} if closed else schema


def larger(inner: st.SearchStrategy) -> st.SearchStrategy:
    some = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(lambda bounds, items: {"type": "array", "items": items, **bounds}, BOUNDS, inner),
        some.map(
            lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        ),
        st.builds(
            an_object,
            st.dictionaries(NAMES, inner, min_size=1, max_size=4),
            st.lists(st.booleans(), min_size=4, max_size=4),
            st.booleans(),
        ),
        some.map(lambda options: {"anyOf": options}),
    )


def writable(schema: dict) -> dict:
    """Without characters that the default model has no tokens for: it lacks the bytes F1 and F2."""
    return json.loads(re.sub("[\U00040000-\U000bffff]", "", json.dumps(schema, ensure_ascii=False)))


def drawn_schemas(count: int, seed: int) -> list[dict]:
    schemas: list[dict] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.recursive(LEAVES, larger, max_leaves=6))
    def draw(schema: dict) -> None:
        schemas.append(writable(schema))

    draw()
    return schemas
