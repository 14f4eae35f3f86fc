"""One run of schemathesis over /openapi.json of a server."""

import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# In its place: what_was_made_is_there, which tells a 404 of the path's resource from one of the body's.
LEFT_OUT = ["ensure_resource_availability"]
# 400: well_formed_requests_are_refused_for_a_reason knows which ones no schema can rule out.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "403", "404", "409", "429"]

# Calls that follow from one another; what is wrong in itself is the other phases' matter.
[phases.stateful.generation]
mode = "positive"
max-examples = {num_scenarios}
"""
PEERS = """
[auth.wfc]
path = "{path}"
user = "{user}"
peers = {peers}
"""


def write_config(folder: pathlib.Path, num_scenarios: int, keys: dict[str, str]) -> pathlib.Path:
    """The configuration. With `keys`, by tenant, cases come from the first; no other may see what it has."""
    text = CONFIG.format(num_scenarios=num_scenarios)
    if keys:
        auth = folder / "keys.yaml"
        entry = '  - name: {}\n    fixedHeaders: [{{name: Authorization, value: "Bearer {}"}}]\n'
        auth.write_text("auth:\n" + "".join(entry.format(*item) for item in keys.items()))
        text += PEERS.format(path=auth, user=next(iter(keys)), peers=list(keys))
    config = folder / "schemathesis.toml"
    config.write_text(text)
    return config


def schemathesis(
    port: int,
    phases: str,
    max_examples: int,
    folder: pathlib.Path,
    *flags: str,
    keys: dict[str, str] | None = None,
    limit_s: int = 500,
) -> int:
    """Runs it; fails with its report where a check failed. Gives the number of cases."""
    command = [str(pathlib.Path(sys.executable).parent / "st")]
    command += ["--config-file", str(write_config(folder, 3 * max_examples, keys or {}))]
    command += ["run", f"http://127.0.0.1:{port}/openapi.json", "--phases", phases]
    command += ["--checks", "all", "--exclude-checks", ",".join(LEFT_OUT)]
    command += ["--max-examples", str(max_examples), "--continue-on-failure", "--seed", "1"]
    command += ["--request-timeout", "60", "--suppress-health-check", "all", *flags]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(HERE), "NO_COLOR": "1"}
    run = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=limit_s)
    report = run.stdout + run.stderr
    assert run.returncode == 0, report[-60000:]
    cases = re.search(r"([\d,]+) generated", report)
    return int(cases.group(1).replace(",", "")) if cases else 0
