"""The chat templates of some seventy models, rendered as Python's Jinja renders them.

What must come out is made here, by jinja2 in the environment that transformers sets up; the templates are
those that `make templates` fetches.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import BUILD, ROOT

sys.path.insert(0, str(ROOT / "scripts" / "fixtures"))

from template_conformance import make_corpus
from template_conversations import all_conversations, more_conversations


def test_every_template_renders_as_python_does(tmp_path):
    cache = pathlib.Path(os.environ.get("THAW_CACHE_DIR", pathlib.Path.home() / ".cache" / "thaw"))
    if not (cache / "templates" / "sha256").exists():
        pytest.fail(f"{cache}/templates is missing; `make templates` fetches it")
    conversations = all_conversations() + more_conversations()
    assert len({conversation["name"] for conversation in conversations}) == len(conversations) >= 100
    corpus = make_corpus(cache / "templates", conversations)
    assert len(corpus["templates"]) >= 70
    for template in corpus["templates"]:
        rendered = sum("text" in result for result in template["results"])
        assert rendered >= 24, f"{template['name']}: Python refuses all but {rendered}"
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps(corpus, ensure_ascii=False), encoding="utf-8")
    run = subprocess.run(
        [BUILD / "bin" / "thaw_chat_template_test", "--gtest_filter=TemplateCorpus.*"],
        env={**os.environ, "THAW_TEMPLATE_CORPUS": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-8000:]
    assert "[  PASSED  ] 2 tests." in run.stdout and "SKIPPED" not in run.stdout, run.stdout[-2000:]
