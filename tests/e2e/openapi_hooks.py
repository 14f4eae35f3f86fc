"""What schemathesis has to know of thaw; loaded by its SCHEMATHESIS_HOOKS."""

import json
import re

import jsonschema
import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import ensure_resource_availability

FIELD = r"`[\w.\[\]]+`"

# A schema bounds each field. These refusals are about several fields at once, about what is inside
# of a text, or about the model: no schema of the request could say them. The message of a 400 to a request
# that fits the schema must begin as one of them.
REASONS = {
    # Several fields together.
    r"`top_logprobs` is \d+ but `logprobs` is not true;": "needs another field",
    r"`(append|replace)` is true but `session_id` is missing$": "needs another field",
    r"`append` and `replace` are both true;": "two that exclude each other",
    r"`best_of` is \d+ but `n` is \d+;": "bounded by another field",
    r"`(best_of|prompt_logprobs)` is \d+ in a stream[;,]": "two that exclude each other",
    rf"{FIELD} and {FIELD} are both given; a reply follows one form only$": "two that exclude each other",
    r"`functions` and `tools` are both given;": "two that exclude each other",
    r"`continue_final_message` is true but there is no message$": "needs another field",
    r"`continue_final_message` and `add_generation_prompt` are both true;": "two that exclude each other",
    r"`include_running` and `checkpoint` are both given;": "two that exclude each other",
    r"`labels` has \d+ entries for \d+ children;": "bounded by another field",
    r"`n` is \d+ in a session's turn;": "what a session's turn is not",
    r"`(continue_final_message|prompt_cache_options.prewarm)` is true in a session's turn": "the same",
    r"`add_generation_prompt` is false in a session's turn": "the same",
    r"`truncate_prompt_tokens` does not go with a session": "two that exclude each other",
    r"`session_id` is given, but the request is not a turn that is answered:": "two that exclude each other",
    r"`background` is true but `store` is false;": "two that exclude each other",
    r"`thaw.explain` is true but so is `background`;": "two that exclude each other",
    r"`trunk.token` goes with `response_id`;": "needs another field",
    r"`forks` asks for \d+ replies in all;": "the branches' n together",
    r"`forks\[\d+\]\.prompt` must be (a string|token ids), as the trunk's is$": "of the trunk's kind",
    r"`prompt` has more prompts than are accepted in one call:": "prompts times n",
    r"`min_tokens` is \d+; it must not exceed": "bounded by another field",
    r"`input` is empty(;| and so is)": "needs another field",
    r"`messages` is empty( and so is the session)?;": "the trunk's, the session's and a branch's together",
    r"`messages` or `session_id` is missing;": "the trunk's messages and a branch's together",
    r"the last message is an assistant's with `tool_use`;": "messages together",
    r"the request has \d+ `cache_control` marks;": "marks in all places together",
    r"`(messages|input)` has \d+ cache breakpoints;": "marks in all messages together",
    # A branch of forks is a chat or a completion, as its trunk is: the other's bounds are no schema's.
    r"`best_of` is \d+; it goes with /v1/completions": "of the other kind of branch",
    r"`max_(completion_)?tokens` is 0(\.0)?; it must be a whole number from 1 ": "the same",
    r"`logprobs` is \d+; it must be true or false$": "the same",
    r"`logprobs` is (true|false); it must be a whole number": "the same",
    # Tools that are named must be there, once.
    r"`(tool_choice|function_call)` asks for a call, but there are no `tools`$": "needs another field",
    r"`(tool_choice|function_call)` names the function \"": "a tool that is not there",
    r"`tool_choice.name` is \".*\", which is not the name of one of the `tools`$": "a tool that is not there",
    r"(a tool call|the function \".*\") is asked for, ": "a tool that is not there",
    r"`[\w.\[\]]+` is \"[^\"]+\", as that of another one in `": "names must differ",
    # Inside of a text or an object.
    r"the prompt is empty; it must have at least one token$": "a text without tokens",
    rf"{FIELD} is a string that is no JSON object;": "JSON inside a string",
    rf"{FIELD} is .*; it must be a structural tag: JSON with `format`$": "JSON inside a string",
    r"`logit_bias` has the key \"\d+\"; keys must be token ids from 0 ": "bounded by the vocabulary",
    r"grammar: ": "a form that does not compile; its compiler says why",
    r"chat_template_kwargs must not set '": "names that the template has from other fields",
    r"this model's chat template does not write (the last message|message \d+) as it is": "its own way",
    r"this is no session of a format that is known:": "a document that no server exported",
    # The server's state, or the model's.
    r"This model's maximum context length is \d+ tokens\. However, ": "longer than the context",
    r"prompt is too long: \d+ tokens > ": "longer than the context",
    r"`(forks\[\d+\]\.)?cache_salt` has \d+ bytes of UTF-8": "a schema counts characters",
    r"the schemas of .* make a grammar of more than": "bounded all together",
    r"no token is left to sample:": "masks that leave nothing of the vocabulary",
    r"worker \d+ does not exist;": "a worker that is not there",
    r"`after` is `.*`, which is none of the (sessions|items)$": "a page behind what is not there",
    r"`file` needs a server that was started with --session-dir;": "the server was started without one",
    r"`file` is `.*`, which is there already;": "a file of the session directory",
    r"`(cache_salt|model)` is not the completion's own;": "of another completion",
    r"`cache_salt` is not the session's own;": "of another session",
    r"`(choice|trunk.choice)` is \d+; (the completion|a response) has ": "of a completion with fewer",
    r"`name` is \".*\", which another checkpoint of this session has$": "the session's state",
    rf"{FIELD} is \d+(, but|; ) ?the session ": "a cut outside of the session",
    r"`append` is true, but ": "the session's state",
    r"response `\w+` was not made with `background`:": "only such a one can be cancelled",
    r"`stream` is true, but response `\w+` was not made with `background`:": "only such a one has events",
}
# The same for what is not there, or is in the way.
CODES = {
    403: {"permission_denied"},
    404: {
        "model_not_found",
        "session_not_found",
        "checkpoint_not_found",
        "file_not_found",
        "response_not_found",
        "previous_response_not_found",
        "item_not_found",
    },
    409: {
        "session_busy",
        "session_exists",
        "session_model_gone",
        "token_not_reached",
        "response_in_progress",
    },
    429: {"rate_limit_exceeded"},
}
OF_THE_PATH = {"session_not_found", "response_not_found"}


def error_of(response) -> dict:
    """With `message`, `code` and others, in OpenAI's form or in Anthropic's; empty where there is none."""
    try:
        error = json.loads(response.content)["error"]
        return {"code": error.get("details", {}).get("error_code"), **error}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # no JSON, or a response of /v1/responses, whose `error` is null


@schemathesis.check
def well_formed_requests_are_refused_for_a_reason(ctx, response, case):
    """positive_data_acceptance goes on here: with the reasons above."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    error = error_of(response)
    if response.status_code == 400:
        message = error.get("message", "")
        if not any(re.match(reason, message, re.DOTALL) for reason in REASONS):
            raise AssertionError(f"a request that fits the schema was refused: {message}")
    elif response.status_code in CODES and response.request.method != "HEAD":
        assert error.get("code") in CODES[response.status_code], error


@schemathesis.check
def what_was_made_is_there(ctx, response, case):
    """ensure_resource_availability, where the 404 is about what the path names: a body may name a model, a
    checkpoint or a response that is not there. A session that was made to live for seconds may be over."""
    if response.status_code != 404 or error_of(response).get("code") not in OF_THE_PATH:
        return
    parent = ctx.internals.find_parent(case_id=case.id)
    made = parent and ctx.internals.find_response(case_id=parent.id)
    if made and made.status_code == 200 and json.loads(made.content).get("ttl_seconds", 600) < 600:
        return
    ensure_resource_availability(ctx, response, case)


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
