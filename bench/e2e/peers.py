#!/usr/bin/env python3
"""thaw beside llama.cpp, interleaved, on the same file: fork rounds over HTTP, prefill, decode, start.

llama.cpp is built from the PyPI sdist of llama-cpp-python 0.3.36 under bench/scratch (never committed).
Rounds alternate between the two sides, so that what else the machine does hits both; figures are medians
and ratios. Writes bench/results/peers.json.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from machine import describe_machine
from rounds import ROOT, fresh_trunk, run_round, suffix
from servers import llama_server, thaw_server

SDIST = "llama-cpp-python==0.3.36"
SCRATCH = ROOT / "bench" / "scratch"
TARGETS = ("llama-server", "llama-bench")


def model_path() -> pathlib.Path:
    cache = os.environ.get("THAW_CACHE_DIR", pathlib.Path.home() / ".cache" / "thaw")
    return pathlib.Path(cache) / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def build_llama() -> pathlib.Path:
    """Folder with llama.cpp's binaries, built where they are not there yet."""
    build = SCRATCH / "llama-build"
    if all((build / "bin" / name).exists() for name in TARGETS):
        return build / "bin"
    SCRATCH.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if not list(SCRATCH.glob("llama_cpp_python-*.tar.gz")):
        print(f"fetching {SDIST} (76 MB)")
        subprocess.run([*pip, "install", "scikit-build-core"], check=True)
        fetch = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", SDIST]
        subprocess.run([*pip, *fetch, "--dest", str(SCRATCH)], check=True)
    archive = next(SCRATCH.glob("llama_cpp_python-*.tar.gz"))
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(SCRATCH)], check=True)
    source = next(SCRATCH.glob("llama_cpp_python-*/vendor/llama.cpp"))
    print("building llama.cpp (about 10 minutes)")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    options += ["-DLLAMA_BUILD_EXAMPLES=OFF", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"]
    # Its AMX code dies on the first tile instruction where a hypervisor announces AMX and keeps it back.
    no_amx = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    options += [f"-DCMAKE_C_FLAGS={no_amx}", f"-DCMAKE_CXX_FLAGS={no_amx}"]
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *options]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(build), "--target", *TARGETS], check=True)
    return build / "bin"


def fork_rounds(binaries: pathlib.Path, branches: int, rounds: int) -> dict:
    """Cold, warm and primed rounds of `branches` x 64 tokens, both sides in turn."""
    walls: dict[str, dict[str, list[float]]] = {
        kind: {"thaw": [], "llama.cpp": []} for kind in ("cold", "warm", "primed")
    }
    context = branches * 2560
    with (
        thaw_server() as thaw,
        llama_server(binaries / "llama-server", model_path(), branches, context) as llama,
    ):
        sides = {"thaw": thaw, "llama.cpp": llama}
        for url, model in sides.values():
            run_round(url, model, ["warm up"], 4)
        for _ in range(rounds):
            for name, (url, model) in sides.items():
                trunk = fresh_trunk()
                prompts = [trunk + suffix(i) for i in range(branches)]
                walls["cold"][name].append(run_round(url, model, prompts, 64).wall_s)
                walls["warm"][name].append(run_round(url, model, prompts, 64).wall_s)
                primed = fresh_trunk()
                run_round(url, model, [primed], 1)
                prompts = [primed + suffix(i) for i in range(branches)]
                walls["primed"][name].append(run_round(url, model, prompts, 64).wall_s)
                print(".", end="", flush=True)
    print()
    summary = {}
    for kind, sides_walls in walls.items():
        medians = {name: statistics.median(values) for name, values in sides_walls.items()}
        summary[kind] = {
            "median_s": medians,
            "all_s": sides_walls,
            "ratio": medians["llama.cpp"] / medians["thaw"],
        }
    return {"branches": branches, "tokens": 64, "kinds": summary}


def llama_rates(binaries: pathlib.Path, prompt_tokens: int, decode_tokens: int) -> tuple[float, float]:
    """(prefill, decode) tokens a second, two threads."""
    command = [str(binaries / "llama-bench"), "-m", str(model_path()), "-t", "2", "-r", "1", "-o", "json"]
    command += ["-p", str(prompt_tokens), "-n", str(decode_tokens)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rate = {("p" if test["n_prompt"] else "n"): test["avg_ts"] for test in found}
    return rate["p"], rate["n"]


def thaw_rates(prompt_tokens: int) -> tuple[float, float]:
    """The same from thaw_model_bench."""
    binary = ROOT / "build" / "release" / "bin" / "thaw_model_bench"
    command = [str(binary), "--benchmark_format=json", "--benchmark_min_time=0.01"]
    command += [f"--benchmark_filter=^prefill/{prompt_tokens}/|^decode/batch:1/context:64/"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rate = {test["name"].split("/")[0]: test["items_per_second"] for test in found["benchmarks"]}
    return rate["prefill"], rate["decode"]


def engine_rates(binaries: pathlib.Path, rounds: int) -> dict:
    rates: dict[str, dict[str, list[float]]] = {
        kind: {"thaw": [], "llama.cpp": []} for kind in ("prefill", "decode")
    }
    for _ in range(rounds):
        for name, (prefill, decode) in (
            ("thaw", thaw_rates(2010)),
            ("llama.cpp", llama_rates(binaries, 2010, 64)),
        ):
            rates["prefill"][name].append(prefill)
            rates["decode"][name].append(decode)
    return {
        kind: {
            "median_tokens_per_s": {name: statistics.median(values) for name, values in sides.items()},
            "all": sides,
            "ratio": statistics.median(sides["thaw"]) / statistics.median(sides["llama.cpp"]),
        }
        for kind, sides in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--branches", type=int, nargs="*", default=[4])
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "bench" / "results" / "peers.json")
    args = parser.parse_args()
    binaries = build_llama()
    engine = engine_rates(binaries, args.rounds)
    forks = [fork_rounds(binaries, branches, args.rounds) for branches in args.branches]
    document = {"machine": describe_machine(), "peer": SDIST, "engine": engine, "fork_rounds": forks}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(document, indent=1) + "\n")

    print(f"{'what':<38} {'thaw':>10} {'llama.cpp':>10} {'ratio':>7}")
    for kind, entry in engine.items():
        median = entry["median_tokens_per_s"]
        label = f"{kind}, tokens/s"
        print(f"{label:<38} {median['thaw']:>10.0f} {median['llama.cpp']:>10.0f} {entry['ratio']:>6.1f}x")
    for fork in forks:
        for kind, entry in fork["kinds"].items():
            median = entry["median_s"]
            label = f"{kind} round, {fork['branches']} x {fork['tokens']}, s"
            print(f"{label:<38} {median['thaw']:>10.2f} {median['llama.cpp']:>10.2f} {entry['ratio']:>6.1f}x")


if __name__ == "__main__":
    main()
