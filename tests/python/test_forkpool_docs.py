"""The examples of docs/python_forkpool.md, run in order as they stand, on the tiny model."""

import re
import shutil

import engines
import pytest
from conftest import BUILD, ROOT


@pytest.mark.skipif(not engines.has_core(), reason="thaw_vllm._core is not built")
@pytest.mark.filterwarnings("error")
def test_examples_run(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "python_forkpool.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 8
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THAW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("THAW_BINARY", str(BUILD / "bin" / "thaw"))
    monkeypatch.setenv("THAW_KV_BYTES", "64MiB")
    shutil.copy(engines.tiny(), tmp_path / "model.gguf")
    names: dict = {}
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"example {number}", "exec"), names)
    finally:
        names["llm"].close()
    told = capsys.readouterr().out
    assert "trunk" in told and "critic" in told and "best branch" in told


def test_the_text_names_everything_that_is_public():
    import thaw_vllm._names

    text = (ROOT / "docs" / "python_forkpool.md").read_text()
    assert not [name for name in thaw_vllm._names.NAMES if not re.search(rf"\b{name}\b", text)]
