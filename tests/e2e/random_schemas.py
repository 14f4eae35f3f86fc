"""JSON schemas at random. A text of one ends: every string, array and number has a bound."""

import random
import string

WORDS = ["name", "größe", "a b", "x", 'quo"te', "naïve", "city", "🙂", "line\nbreak", "back\\slash", "n1"]
PATTERNS = ["^[a-z]{2,6}$", "^[A-Z][0-9]{3}$", "^(red|green|blue)$", "^\\d{4}-\\d{2}$", "^[^a-z]{1,4}$"]


def schema(rng: random.Random, depth: int = 0) -> dict:
    kinds = ["integer", "number", "boolean", "null", "string", "pattern", "enum", "const"]
    if depth < 3:
        kinds += ["array", "object", "object", "anyOf"] * 2
    kind = rng.choice(kinds)
    if kind == "integer":
        low = rng.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
    if kind == "number":
        low = rng.randint(-50, 50)
        return {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 200)}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "string":
        return {"type": "string", "minLength": rng.randint(0, 1), "maxLength": rng.randint(1, 10)}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind == "enum":
        return {"enum": rng.sample([1, -7, 2.5, None, True, *WORDS], rng.randint(1, 5))}
    if kind == "const":
        return {"const": rng.choice([rng.choice(WORDS), rng.randint(0, 99), [1, "x"], {"k": None}])}
    if kind == "array":
        low = rng.randint(0, 2)
        return {
            "type": "array",
            "items": schema(rng, depth + 1),
            "minItems": low,
            "maxItems": low + rng.randint(0, 2),
        }
    if kind == "anyOf":
        return {"anyOf": [schema(rng, depth + 1) for _ in range(rng.randint(2, 3))]}
    names = rng.sample(WORDS + list(string.ascii_lowercase), rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: schema(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def recursive(rng: random.Random) -> dict:
    """A tree whose nodes hold a random value; it ends where the model likes."""
    node = {
        "type": "object",
        "properties": {
            "value": schema(rng, 2),
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
        },
        "required": ["value", "children"],
        "additionalProperties": False,
    }
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


def random_schemas(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return [recursive(rng) if i % 10 == 9 else schema(rng) for i in range(count)]
