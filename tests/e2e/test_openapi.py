"""/openapi.json is a valid document, answers are what it says, and a short run of schemathesis over it."""

import http.client
import json

import jsonschema
import pytest
from openapi_run import schemathesis
from openapi_spec_validator import OpenAPIV31SpecValidator

# The tiny model takes it; answers of hundreds of tokens would only take time.
LIMITS = ("--max-model-len", "128", "--max-num-seqs", "4")
USER = [{"role": "user", "content": "Say hello."}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def document(serve):
    # Room for the tools' instructions, which are long in the tiny model's tokens.
    server = serve("--max-model-len", "512", "--max-num-seqs", "4")
    status, text = server.get("/openapi.json")
    assert status == 200
    return server, json.loads(text)


def validator(document: dict, name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )


def test_the_document_is_valid(document):
    OpenAPIV31SpecValidator(document[1]).validate()
    for schema in document[1]["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path in document[1]["paths"].values():
        for operation in path.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in content:
                name = content["schema"]["$ref"].rpartition("/")[2]
                validator(document[1], name).validate(content["example"])


CHATS = [
    {},
    {"logprobs": True, "top_logprobs": 2, "n": 2},
    {"prompt_logprobs": 2, "return_token_ids": True, "echo": True},
    {"stop": ["e"], "include_stop_str_in_output": True},
    {"thaw": {"explain": True}},
    {"tools": [TOOL], "tool_choice": "required"},
    {"functions": [TOOL["function"]], "function_call": {"name": "f"}},
    {"response_format": {"type": "json_object"}},
    {"return_tokens_as_token_ids": True, "logprobs": True},
]
TEXTS = [
    {},
    {"prompt": ["Say", "hello"], "thaw": {"explain": True}},
    {"logprobs": 2, "echo": True},
    {"prompt": [1, 2, 3], "prompt_logprobs": 1, "return_token_ids": True},
    {"best_of": 3, "n": 2},
]


def test_answers_are_what_it_says(document):
    server, doc = document
    bodies = {doc_name: validator(doc, doc_name) for doc_name in doc["components"]["schemas"]}
    calls = [("/v1/chat/completions", "Chat", {"messages": USER, **more}) for more in CHATS]
    calls += [("/v1/completions", "Completion", {"prompt": "Say hello.", **more}) for more in TEXTS]
    for path, kind, body in calls:
        body = {"max_tokens": 12, **body}
        bodies[f"{kind}Request"].validate(body)
        status, answer = server.post(path, body)
        assert status == 200, (body, answer)
        bodies["ChatCompletion" if kind == "Chat" else "TextCompletion"].validate(answer)
        if "best_of" in body or "prompt_logprobs" in body:
            continue
        for event in server.stream(path, body):
            name = "ChatCompletionChunk" if kind == "Chat" else "TextCompletionChunk"
            bodies[name].validate(event)


RESPONSES = [
    {},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "return_token_ids": True},
    {"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0, "thaw": {"explain": True}},
    {"tools": [{"type": "function", "name": "f"}], "tool_choice": "required", "max_output_tokens": 60},
    {"text": {"format": {"type": "json_object"}}, "store": False},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]},
]
MESSAGES = [
    {},
    {"system": "Be brief.", "stop_sequences": ["e"], "thaw": {"explain": True}},
    {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
]


def test_answers_of_the_other_dialects_are_what_it_says(document):
    server, doc = document
    for path, kind, base, variants in [
        ("/v1/responses", "Response", {"input": "Say hello.", "max_output_tokens": 12}, RESPONSES),
        ("/v1/messages", "Message", {"messages": USER, "max_tokens": 12}, MESSAGES),
    ]:
        content = doc["paths"][path]["post"]["responses"]["200"]["content"]
        event = {**content["text/event-stream"]["schema"]["x-event"], "components": doc["components"]}
        for more in variants:
            body = {**base, **more}
            validator(doc, f"{kind}sRequest").validate(body)
            status, answer = server.post(path, body)
            assert status == 200, (body, answer)
            validator(doc, {"Response": "Response", "Message": "MessagesAnswer"}[kind]).validate(answer)
            types = set()
            for value in named_events(server, path, body):
                jsonschema.Draft202012Validator(event).validate(value)
                types.add(value["type"])
            assert types & {"response.completed", "response.incomplete", "message_stop"}, types
    _, first = server.post("/v1/responses", {"input": "Say hello.", "max_output_tokens": 4, "store": True})
    for below, schema in [("", "Response"), ("/input_items?limit=1", "ResponseItems")]:
        status, text = server.get(f"/v1/responses/{first['id']}{below}")
        assert status == 200
        validator(doc, schema).validate(json.loads(text))
    for path, body, schema in [
        ("/v1/messages/count_tokens", {"messages": USER}, "MessageTokens"),
        ("/v1/responses/input_tokens", {"input": "Say hello."}, "ResponseInputTokens"),
    ]:
        status, answer = server.post(path, body)
        assert status == 200
        validator(doc, schema).validate(answer)
    status, answer = server.post("/v1/messages", {"messages": USER})
    assert status == 400 and answer["error"]["details"]["param"] == "max_tokens"
    validator(doc, "MessageError").validate(answer)


def named_events(server, path: str, body: dict):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, json.dumps({**body, "stream": True}))
    text = connection.getresponse().read().decode()
    connection.close()
    for frame in text.split("\n\n"):
        if frame:
            name, _, data = frame.partition("\ndata: ")
            value = json.loads(data)
            assert name == f"event: {value['type']}"
            yield value


def test_answers_of_sessions_and_the_rest(document):
    server, doc = document

    def check(method: str, path: str, schema: str, body=None):
        if method == "GET":
            status, text = server.get(path)
            answer = json.loads(text)
        else:
            status, answer = server.post(path, body)
        assert status == 200, (path, answer)
        validator(doc, schema).validate(answer)
        return answer

    session = check("POST", "/v1/sessions", "Session", {"messages": USER, "label": "a"})
    here = f"/v1/sessions/{session['id']}"
    check(
        "POST",
        "/v1/chat/completions",
        "ChatCompletion",
        {"session_id": session["id"], "messages": USER, "max_tokens": 4},
    )
    check("POST", f"{here}/checkpoint", "SessionCheckpoint", {"name": "c"})
    check("POST", f"{here}/fork", "Sessions", {"n": 2, "cut": {"messages": 1}, "labels": ["x"]})
    check("POST", f"{here}/rewind", "Session", {"checkpoint": "c"})
    check("GET", f"{here}?include=messages,token_ids", "Session")
    check("GET", f"{here}/tree", "SessionTree")
    check("GET", "/v1/sessions?limit=2", "Sessions")
    check("POST", f"{here}/export", "SessionExport", {})
    forks = [{"label": "a"}, {"max_tokens": 2}, {"tools": [TOOL], "tool_choice": "none"}]
    check("POST", "/v1/forks", "Forks", {"trunk": {"messages": USER}, "forks": forks, "max_tokens": 4})
    for path, schema in [
        ("/v1/models", "Models"),
        ("/v1/forks/recent", "RecentForks"),
        ("/admin/pool", "Pool"),
        ("/health", "Health"),
        ("/version", "Version"),
        ("/admin/snapshots", "Snapshots"),
    ]:
        check("GET", path, schema)
    tokens = check("POST", "/tokenize", "Tokens", {"prompt": "a b", "return_token_strs": True})
    check("POST", "/detokenize", "Detokenized", {"tokens": tokens["tokens"]})
    status, answer = server.post("/v1/chat/completions", {"messages": USER, "temperature": 3})
    assert status == 400
    validator(doc, "Error").validate(answer)


def test_schemathesis_finds_nothing(serve, tmp_path):
    server = serve(*LIMITS)
    assert schemathesis(server.port, "examples,fuzzing,stateful", 10, tmp_path) > 200
