#!/usr/bin/env python3
"""Runs tests/clients/test_NAME.py for each client that people use, in an environment of its own.

The clients do not agree on the versions of what they need, so each one has a virtual environment under
.venvs-clients/, made where it is missing or its versions have changed. Names on the command line choose some
of them; --make-only stops before the tests."""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venvs-clients"
PYTEST = "pytest==9.0.3"

# In the order of how much they are used.
CLIENTS = {
    "openai": ["openai==3.54.0"],
    "anthropic": ["anthropic==2.12.0"],
    "langchain": [
        "langchain==1.4.7",
        "langchain-openai==1.7.3",
        "langchain-core==1.7.2",
        "langgraph==1.2.22",
    ],
    "langchain_standard": [
        "langchain-tests==1.1.9",
        "langchain-openai==1.7.3",
        "langchain-core==1.7.2",
        "pytest-asyncio==1.5.0",
    ],
    "openai_agents": ["openai-agents==0.24.0"],
    "pydantic_ai": ["pydantic-ai-slim[openai]==2.68.0"],
    "llama_index": ["llama-index-llms-openai-like==0.8.1"],
    "autogen": ["autogen-agentchat==0.7.5", "autogen-ext[openai]==0.7.5"],
    "agent_framework": ["agent-framework-openai==1.17.0"],
    "smolagents": ["smolagents[openai]==1.26.0"],
    "instructor": ["instructor==1.17.0"],
    "strands": ["strands-agents[openai]==1.62.0"],
}

# What has an environment of its own too, but is no client.
OTHERS = {"schemas": ["jsonschema==4.26.0", "hypothesis==6.112.0", "hypothesis-jsonschema==0.23.1"]}
TESTS = {"schemas": "tests/e2e/long/test_schemas.py"}
FLAGS = {
    "langchain_standard": ["-o", "asyncio_default_test_loop_scope=session"],  # its chats keep one client
    "schemas": ["-s"],
}


def environment(name: str) -> pathlib.Path:
    """The client's Python, made where it is not there yet."""
    requirements = "\n".join([PYTEST, *(CLIENTS | OTHERS)[name]]) + "\n"
    folder = ENVIRONMENTS / name
    stamp = folder / "requirements.stamp"
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == requirements:
        return python
    print(f"==> making the environment of {name}", flush=True)
    base = "/usr/bin/python3" if pathlib.Path("/usr/bin/python3").exists() else sys.executable
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements.split()], check=True)
    stamp.write_text(requirements)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*CLIENTS, *OTHERS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(known)}")
    parser.add_argument("--make-only", action="store_true", help="make the environments, run nothing")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no such client: {', '.join(unknown)}; there are {', '.join(known)}")
    failed = []
    for name in arguments.names or CLIENTS:
        python = environment(name)
        if arguments.make_only:
            continue
        print(f"==> {name}", flush=True)
        pytest = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *FLAGS.get(name, [])]
        test = TESTS.get(name, f"tests/clients/test_{name}.py")
        if subprocess.run([*pytest, test], cwd=ROOT).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
