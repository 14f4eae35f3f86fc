"""What schemathesis has to know of thaw; loaded by its SCHEMATHESIS_HOOKS."""

import json
import re

import jsonschema
import schemathesis
from schemathesis.generation import GenerationMode

# A schema bounds each field. These refusals are about several fields at once, about what is inside
# of a text, or about the model: no schema of the request could say them. A 400 of a request that fits
# the schema must be one of them.
REASONS = {
    # Several fields together.
    r"`top_logprobs` is \d+ but `logprobs` is not true": "needs another field",
    r"`(append|replace)` is true but `session_id` is missing": "needs another field",
    r"`append` and `replace` are both true": "two that exclude each other",
    r"`best_of` is \d+ but `n` is": "bounded by another field",
    r"`best_of` is \d+ in a stream": "two that exclude each other",
    r"`prompt_logprobs` is \d+ in a stream": "two that exclude each other",
    r"are both given; a reply follows one form only": "two that exclude each other",
    r"`functions` and `tools` are both given": "two that exclude each other",
    r"`continue_final_message` (is true but there is no message|and `add_generation_prompt`)": "two together",
    r"`include_running` and `checkpoint` are both given": "two that exclude each other",
    r"`labels` has \d+ entries for \d+ children": "bounded by another field",
    r"in a session's turn": "what a session's turn is not",
    r"`truncate_prompt_tokens` does not go with a session": "two that exclude each other",
    r"`trunk.token` goes with `response_id`": "needs another field",
    r"`forks` asks for \d+ replies in all": "the branches' n together",
    r"^`forks\[\d+\]\.prompt` must be (a string|token ids), as the trunk's is": "of the trunk's kind",
    r"more prompts than are accepted in one call": "prompts times n",
    r"goes with /v1/completions, a chat shows": "of the other kind of branch",
    r"`max_(completion_)?tokens` is 0": "of the other kind of branch",
    r"`logprobs` is (true|false|\d+)": "of the other kind of branch",
    r"must be .*messages`|`messages` (is empty|is missing)": "depends on the trunk or the session",
    r"`tool_choice`|`function_call`": "a tool that is not there",
    r"a tool call is asked for|is asked for, which is not among": "a tool that is not there",
    r"as that of another one in": "names must differ",
    r"names the function": "a tool that is not there",
    r"`min_tokens` is \d+; it must not exceed `max_tokens`": "bounded by another field",
    r"`tool_choice.name` is": "a tool that is not there",
    r"which another checkpoint of this session has": "the session's state",
    r"must follow as `tool_result` blocks": "messages together",
    r"but the request is not a turn that is answered": "two that exclude each other",
    r"`input` is empty": "needs another field",
    r"`messages` or `session_id` is missing": "the trunk's messages and a branch's together",
    # Inside of a text or an object.
    r"the prompt is empty": "a text without tokens",
    r"is a string that is no JSON object": "JSON inside a string",
    r"a structural tag: JSON with `format`": "JSON inside a string",
    r"`logit_bias` has the key": "a token id as a name is bounded by the vocabulary",
    r"grammar|schema|regular expression|regex|cannot be compiled": "a form that does not compile",
    r"template": "the chat template refuses the conversation",
    r"document": "no session document",
    r"no session of a format that is known": "no session document",
    r"was not made with `background`": "of responses in the background",
    # The server's state, or the model's.
    r"maximum context length|context": "longer than the context",
    r"`bad_words`": "a word that the vocabulary cannot spell",
    r"`thaw.worker`|worker": "a worker that is not there",
    r"`after` is": "none of the sessions",
    r"session directory": "the server was started without one",
    r"is not the completion's own": "of another completion",
    r"leaves? (nothing|no|too few)|tokens? (are|is) left": "a cut outside of the session",
    r"has only|has \d+ (tokens|messages)": "a cut outside of the session",
    r"`choice` is": "of a completion with fewer",
    r"`file` ": "a file of the session directory",
}


def message_of(response) -> str:
    try:
        return json.loads(response.content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return ""


@schemathesis.check
def well_formed_requests_are_refused_for_a_reason(ctx, response, case):
    """positive_data_acceptance, with the reasons above."""
    if response.status_code != 400 or case.meta is None:
        return
    if case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    message = message_of(response)
    if not any(re.search(reason, message) for reason in REASONS):
        raise AssertionError(f"a request that fits the schema was refused: {message}")


@schemathesis.check
def every_refusal_says_why(ctx, response, case):
    """An error has a message, and one of a field names it."""
    if response.status_code < 400 or response.request.method == "HEAD":
        return
    body = json.loads(response.content)
    if body.get("status") in ("loading", "draining"):
        return
    assert len(body["error"]["message"]) > 10, body


@schemathesis.check
def events_follow_the_schema(ctx, response, case):
    """Every frame of a stream is the chunk that the document describes, or an error."""
    if not str(response.headers.get("content-type", "")).strip("[']").startswith("text/event-stream"):
        return
    document = case.operation.schema.raw_schema
    content = case.operation.definition.raw["responses"]["200"]["content"]
    event = content["text/event-stream"]["schema"]["x-event"]
    schema = {
        "anyOf": [event, {"$ref": "#/components/schemas/Error"}],
        "components": document["components"],
    }
    validator = jsonschema.Draft202012Validator(schema)
    text = response.content.decode()
    frames = [frame for frame in text.split("\n\n") if frame]
    assert frames, "a stream without frames"
    for frame in frames:
        name, _, data = frame.rpartition("data: ")
        if data == "[DONE]":
            continue
        value = json.loads(data)
        validator.validate(value)
        assert not name or name.strip() == f"event: {value['type']}", frame
