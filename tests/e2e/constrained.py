"""Requests with a grammar, and what their answers must be."""

import collections
import concurrent.futures
import json
import re

import jsonschema


def of_schema(schema: dict) -> dict:
    """Fields of a request whose answer is JSON of `schema`."""
    return of_format({"type": "json_schema", "json_schema": schema})


def of_format(wanted: dict) -> dict:
    return {"structured_outputs": {"structural_tag": {"type": "structural_tag", "format": wanted}}}


def check_schemas(server, schemas: list[dict], max_tokens: int, at_once: int = 8) -> collections.Counter:
    """One answer for each schema at temperature 1: all that ended parse and validate."""

    def ask(numbered) -> str:
        number, schema = numbered
        body = {
            "prompt": f"Entry {number} as JSON: ",
            "max_tokens": max_tokens,
            "temperature": 1.0,
            "seed": number,
            **of_schema(schema),
        }
        status, reply = server.post("/v1/completions", body)
        assert status == 200, (schema, reply)
        choice = reply["choices"][0]
        if choice["finish_reason"] == "length":
            return "length"
        assert choice["finish_reason"] == "stop", reply
        try:
            # Bytes that make no character are answered as U+FFFD, one or more for what was one.
            value = json.loads(re.sub("\ufffd+", "\ufffd", choice["text"]))
            jsonschema.Draft202012Validator(schema).validate(value)
        except (ValueError, jsonschema.ValidationError) as failure:
            raise AssertionError(f"{json.dumps(schema)}\n{choice['text']!r}\n{failure}") from failure
        return "stop"

    with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
        return collections.Counter(threads.map(ask, enumerate(schemas)))
