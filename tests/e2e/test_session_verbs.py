"""The verbs on a running server: what they send, and what they show of the answers. The server is a
fake that answers as docs/sessions.md says, so that answers can also be wrong."""

import http.server
import json
import threading

import pytest
import thaw_handle
from test_handles import refusal, shown, told

ROOT_ID, CHILD_ID, OTHER_ID = "a" * 32, "b" * 32, "c" * 32


def node(session_id: str, **fields) -> dict:
    return {
        "id": session_id,
        "label": None,
        "parent": None,
        "fork_tokens": None,
        "tokens": 1040,
        "num_messages": 3,
        "shared_tokens": 0,
        "shared_blocks": 0,
        "turns": 1,
        "running": False,
        "kv": {"kept": True, "tokens": 1040, "bytes": 46 << 20, "given_up": False},
        "checkpoints": [],
        "children": [],
    } | fields


NODES = {
    ROOT_ID: node(
        ROOT_ID, label="root\x1b[2J", children=[CHILD_ID], checkpoints=[{"name": "before", "tokens": 1000}]
    ),
    CHILD_ID: node(
        CHILD_ID, label="child", parent=ROOT_ID, fork_tokens=1040, tokens=1100, shared_tokens=1040,
        shared_blocks=65, running=True, kv={"kept": False, "tokens": 0, "bytes": 0, "given_up": True},
    ),
    OTHER_ID: node(OTHER_ID),
}  # fmt: skip
TREES = {ROOT_ID: [ROOT_ID, CHILD_ID], CHILD_ID: [ROOT_ID, CHILD_ID], OTHER_ID: [OTHER_ID]}


class Fake(http.server.BaseHTTPRequestHandler):
    """Keeps what it was asked in `server.asked`; `server.answer` overrules an answer."""

    def log_message(self, *_):
        pass

    def reply(self, body, status=200):
        if self.server.answer is not None:
            status, body = self.server.answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.server.asked.append(("GET", self.path, None, self.headers.get("Authorization")))
        path, _, query = self.path.partition("?")
        if path == "/v1/sessions":
            # Two pages.
            listed = list(NODES.values())
            first = "after=" not in query
            self.reply({"object": "list", "data": listed[:2] if first else listed[2:], "has_more": first})
        else:
            session = path.split("/")[3]
            nodes = [NODES[other] for other in TREES[session]]
            self.reply({"object": "session.tree", "root": nodes[0]["id"], "current": session, "nodes": nodes})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(("POST", self.path, body, self.headers.get("Authorization")))
        session, verb = self.path.split("/")[3:]
        if verb == "fork":
            labels = body.get("labels", [])
            children = [
                node("d" * 31 + str(i), parent=session, tokens=body.get("cut", {}).get("tokens", 1040),
                     label=labels[i] if i < len(labels) else None)
                for i in range(body["n"])
            ]  # fmt: skip
            self.reply({"object": "list", "data": children, "has_more": False})
        elif verb == "checkpoint":
            name = body.get("name", "2")
            self.reply({"object": "session.checkpoint", "session": session, "name": name, "tokens": 1040})
        else:
            self.reply(node(session, tokens=body.get("tokens", 1000)))


@pytest.fixture
def fake():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    server.asked, server.answer = [], None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_log_shows_all_trees(fake):
    trees = told("log", "--url", fake.url + "/v1/", "--api-key", "secret")["trees"]
    assert [tree["root"] for tree in trees] == [ROOT_ID, OTHER_ID]
    assert [path for _, path, _, _ in fake.asked] == [
        "/v1/sessions?limit=100",
        f"/v1/sessions?limit=100&after={CHILD_ID}",
        f"/v1/sessions/{ROOT_ID}/tree",
        f"/v1/sessions/{OTHER_ID}/tree",
    ]
    assert {key for _, _, _, key in fake.asked} == {"Bearer secret"}
    text = shown("log", "--url", fake.url)
    head, _, root, child, other = text.splitlines()
    assert head == "3 sessions"
    assert root.startswith("root\\u001b[2J") and ROOT_ID in root and "1,040 tok" in root
    assert "46 MiB kept" in root and "checkpoints before" in root
    assert child.startswith("`- child") and "shares 1,040 tokens in 65 blocks, running" in child
    assert "no KV kept" in child and other.startswith("- ")


def test_log_shows_the_tree_of_one(fake):
    assert shown("log", CHILD_ID, "--url", fake.url).startswith("2 sessions\n")
    assert [path for _, path, _, _ in fake.asked] == [f"/v1/sessions/{CHILD_ID}/tree"]


def test_checkpoint_branch_and_checkout_ask_for_what_was_said(fake):
    assert shown("checkpoint", ROOT_ID, "--url", fake.url, "--name", "x") == (
        f"[thaw] checkpoint x of {ROOT_ID}: 1,040 tokens\n"
    )
    assert told("checkpoint", ROOT_ID, "--url", fake.url)["name"] == "2"
    text = shown("branch", ROOT_ID, "--url", fake.url, "-n", 2, "--at", 512, "--label", "a", "--label", "b")
    assert text.splitlines() == [
        f"[thaw] branched {ROOT_ID} to {'d' * 31}{i} ({'ab'[i]}): 512 tokens" for i in (0, 1)
    ]
    told("branch", ROOT_ID, "--url", fake.url, "--checkpoint", "before")
    assert shown("checkout", ROOT_ID, "--url", fake.url, "--checkpoint", "before") == (
        f"[thaw] {ROOT_ID} is back at 1,000 tokens\n"
    )
    assert told("checkout", ROOT_ID, "--url", fake.url, "--at", 700)["tokens"] == 700
    assert [(path.rsplit("/", 1)[1], body) for _, path, body, _ in fake.asked] == [
        ("checkpoint", {"name": "x"}),
        ("checkpoint", {}),
        ("fork", {"n": 2, "cut": {"tokens": 512}, "labels": ["a", "b"]}),
        ("fork", {"n": 1, "checkpoint": "before"}),
        ("rewind", {"checkpoint": "before"}),
        ("rewind", {"tokens": 700}),
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {"error": {"message": "no session `x`\nhere"}}), "answered 404: no session `x`\\nhere"),
        ((500, b"<html>"), "answered 500: <html>"),
        ((200, b"<html>"), "not what a thaw server sends"),
        ((200, b"[]"), "not what a thaw server sends"),
        ((200, {"nodes": [{"id": 7}]}), "a node without an id"),
        ((200, {"nodes": 7}), "no nodes"),
        ((200, {"nodes": [node(ROOT_ID), node(ROOT_ID)]}), "a node twice"),
    ],
)
def test_a_strange_answer_is_one_line(fake, answer, reason):
    fake.answer = answer
    assert reason in refusal("log", ROOT_ID, "--url", fake.url)


def test_what_makes_no_sense_is_not_sent(fake, tmp_path):
    for session in ("x", "../" + "a" * 29, "A" * 32):
        for verb in ("log", "branch", "checkpoint", "checkout"):
            assert "is no session of a server" in refusal(verb, session, "--url", fake.url)
    assert "leave it out" in refusal("branch", ROOT_ID, tmp_path / "x", "--url", fake.url)
    assert "--url" in refusal("branch", ROOT_ID, tmp_path / "x", "--at", 3)
    assert "root is required" in refusal("log")
    assert fake.asked == []
    fake.answer = (200, {"data": 1})
    assert "lists no sessions" in refusal("log", "--url", fake.url)
    assert "lists no children" in refusal("branch", ROOT_ID, "--url", fake.url)
    assert "cannot reach" in refusal("log", "--url", "http://127.0.0.1:1")
    assert "must start with http://" in refusal("log", "--url", "file:///etc/passwd")


def test_a_real_server_is_asked_what_it_answers(serve, tmp_path):
    kept = tmp_path / "kept"
    server = serve("--session-dir", str(kept))
    url = f"http://127.0.0.1:{server.port}"
    assert shown("log", "--url", url) == f"no sessions at {url}\n"
    message = {"role": "system", "content": "You read the report, slowly and to the end. " * 8}
    status, session = server.post("/v1/sessions", {"messages": [message], "label": "trunk"})
    assert status == 200, session
    trunk, tokens = session["id"], session["tokens"]
    cut = tokens // 2
    branches = ["--label", "plan", "--label", "doubt"]
    children = told("branch", trunk, "--url", url, "-n", 2, "--at", cut, *branches)["data"]
    assert [(child["label"], child["tokens"]) for child in children] == [("plan", cut), ("doubt", cut)]
    text = shown("log", "--url", url)
    assert text.startswith("3 sessions\n") and f"shares {cut:,} tokens in {cut // 16} blocks" in text
    assert [line[:2] for line in text.splitlines()[3:5]] == ["|-", "`-"]
    (tree,) = told("log", "--url", url)["trees"]
    assert [entry["id"] for entry in tree["nodes"]] == [trunk, *(child["id"] for child in children)]

    # A checkpoint that the server wrote becomes a handle, and is compared as any other.
    point = told("checkpoint", trunk, "--url", url, "--name", "before")
    assert (point["name"], point["tokens"]) == ("before", tokens)
    found = told("checkpoint", kept / f"{trunk}.thawkv", tmp_path / "trunk", "--label", "trunk")
    assert found["checksums"] == "right" and found["prefix_tokens"] == found["num_kv_blocks"] * 16
    assert found["prefix_tokens"] > tokens - 32 and found["layout"].startswith("thaw ")
    assert thaw_handle.Handle(tmp_path / "trunk").prefix_token_ids == found["prefix_token_ids"]
    told("checkpoint", children[0]["id"], "--url", url)
    told(
        "checkpoint", kept / f"{children[0]['id']}.thawkv", tmp_path / "plan", "--parent", tmp_path / "trunk"
    )
    compared = told("diff", tmp_path / "trunk", tmp_path / "plan")
    assert compared["shared_blocks"] == cut // 16
    assert "shares" in shown("log", tmp_path)

    turn = {"session_id": trunk, "messages": [{"role": "user", "content": "And?"}], "max_tokens": 4}
    status, reply = server.post("/v1/chat/completions", turn)
    assert status == 200, reply
    back = shown("checkout", trunk, "--url", url, "--checkpoint", "before")
    assert back == f"[thaw] {trunk} is back at {tokens:,} tokens\n"
    assert "has no checkpoint `x`" in refusal("checkout", trunk, "--url", url, "--checkpoint", "x")
    assert "answered 404" in refusal("log", OTHER_ID, "--url", url)
