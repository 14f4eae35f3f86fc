"""The demos of forks and pools: one command each, --help, a table, a JSON file, no GPU; on the tiny model."""

import json
import os
import subprocess
import sys

import engines
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "demos"))
import sandbox

DEMOS = ("fork_pool_rl", "rl_rollout_simulator", "agent_fork", "parallel_agents")
TESTS = (
    "from solution import f\n\n\ndef test_a():\n    assert f() == 1\n\n\ndef test_b():\n    assert f() != 1\n"
)


def run(name, *arguments, cache):
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, str(ROOT / "demos" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "THAW_CACHE_DIR": str(cache)},
    )


@pytest.mark.parametrize("name", DEMOS)
def test_help(name, tmp_path):
    done = run(name, "--help", cache=tmp_path)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr


@pytest.mark.skipif(not engines.has_core(), reason="thaw_vllm._core is not built")
@pytest.mark.parametrize("name, arguments", [
    ("fork_pool_rl", ["--rounds", "2", "--max-tokens", "8", "--workers", "2"]),
    ("rl_rollout_simulator", ["--rollouts", "4", "--max-tokens", "8"]),
    ("agent_fork", ["--full-cycle", "--max-tokens", "8"]),
    ("agent_fork", ["--max-tokens", "8"]),
    ("parallel_agents", ["--max-tokens", "16"]),
])  # fmt: skip
def test_a_demo_runs(name, arguments, tmp_path):
    if name == "parallel_agents" and not has_namespaces():
        arguments = [*arguments, "--allow-network"]
    out = tmp_path / "report.json"
    model = ["--model", str(engines.tiny()), "--kv-bytes", "64MiB", "--json", str(out)]
    done = run(name, *model, *arguments, cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert "prompt tokens" in done.stdout or "clone" in done.stdout
    if name == "fork_pool_rl":
        assert len(report["rounds"]) == 2 and report["cached"] > 3 * report["computed"]
    elif name == "rl_rollout_simulator":
        assert report["prefilled"] <= report["without_fork"] / 4
    elif name == "agent_fork":
        assert all(clone["same"] and clone["cached"] > 500 for clone in report["clones"])
    else:
        assert len(report["attempts"]) == 8 and report["computed"] < report["prompt_tokens"] / 2


def has_namespaces() -> bool:
    try:
        sandbox.run_tests("", "def test_a(): pass\n", sandbox.Limits())
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("code, expected", [
    ("def f():\n    return 1\n", (1, 1, "")),
    ("def f():\n    while True:\n        pass\n", (0, 0, "SIGXCPU")),
    ("def f():\n    return len(bytearray(2 << 30))\n", (0, 2, "")),
    ("def f():\n    open('big', 'wb').write(bytes(8 << 20))\n    return 1\n", (0, 2, "")),
    ("import time\n\n\ndef f():\n    time.sleep(3600)\n", (0, 0, "over 5 s")),
    ("x = = 1\n", (0, 1, "the code cannot be imported")),
])  # fmt: skip
def test_the_sandbox_holds(code, expected):
    limits = sandbox.Limits(cpu_s=3, wall_s=5.0, allow_network=not has_namespaces())
    verdict = sandbox.run_tests(code, TESTS, limits)
    if expected[2].startswith("SIGXCPU"):
        # By the clock where the machine is so busy that it comes first.
        assert verdict.passed == 0 and verdict.reason in ("SIGXCPU", "SIGKILL", "over 5 s")
    else:
        assert (verdict.passed, verdict.failed, verdict.reason) == expected


def test_the_sandbox_has_no_network():
    if not has_namespaces():
        pytest.skip("no network namespaces for this user")
    code = (
        "import socket\n\n\ndef f():\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
        "        s.connect(('192.0.2.1', 9))\n    return 1\n"
    )
    verdict = sandbox.run_tests(code, TESTS, sandbox.Limits())
    assert (verdict.passed, verdict.failed) == (0, 2)
