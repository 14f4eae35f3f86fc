#!/usr/bin/env python3
"""Eight ways to write one function, from one trunk, ranked by real test runs.

The trunk is the project's context; each agent continues it with an approach of its own. What they write is
run by pytest in a subprocess with limits on CPU, memory, time and network, and ranked by tests passed.
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import common
import sandbox
from thaw_vllm import LLM, SamplingParams, fork_completions

# What an agent is told, and how its function begins.
APPROACHES = {
    "for loop": ("with a for loop and an accumulator", "    total = 0\n    for"),
    "while loop": ("with a while loop", "    total = 0\n    i = 1\n    while"),
    "sum": ("with sum() and a generator expression", "    return sum("),
    "comprehension": ("with a list comprehension", "    squares = ["),
    "recursion": ("by recursion", "    if n == 0:"),
    "formula": ("with the closed formula n * (n + 1) * (2 * n + 1) // 6", "    return n"),
    "map": ("with map() and a lambda", "    return sum(map("),
    "reduce": ("with functools.reduce", "    return functools.reduce("),
}
SIGNATURE = "def sum_of_squares(n):\n"
EXAMPLES = '''"""Small functions, each written in more than one way, with nothing but the standard library."""

import functools
import math


# Approach: with a for loop and an accumulator. The sum of the numbers from 1 to n.
def sum_of_numbers(n):
    total = 0
    for i in range(1, n + 1):
        total += i
    return total


# Approach: by recursion. The product of the numbers from 1 to n.
def factorial(n):
    if n == 0:
        return 1
    return n * factorial(n - 1)


# Approach: with sum() and a generator expression. The sum of the cubes of the numbers from 1 to n.
def sum_of_cubes(n):
    return sum(i * i * i for i in range(1, n + 1))


# Approach: with functools.reduce. The sum of the numbers from 1 to n.
def sum_by_reduce(n):
    return functools.reduce(lambda total, i: total + i, range(1, n + 1), 0)


# Approach: with a while loop. The number of digits of n.
def count_digits(n):
    digits = 1
    while n >= 10:
        n //= 10
        digits += 1
    return digits

'''
TESTS = """import pytest

from solution import sum_of_squares


@pytest.mark.parametrize("n, expected", [(0, 0), (1, 1), (2, 5), (3, 14), (10, 385), (100, 338350)])
def test_sum_of_squares(n, expected):
    assert sum_of_squares(n) == expected
"""


@dataclasses.dataclass
class Attempt:
    """One agent's function and what became of it."""

    name: str
    code: str
    prompt_tokens: int
    cached_tokens: int
    passed: int = 0
    failed: int = 0
    test_s: float = 0.0
    reason: str = ""


def prompt_for(told: str, lead: str) -> str:
    task = f"# Approach: {told}. The sum of the squares of the numbers from 1 to n."
    return f"{EXAMPLES}\n{task}\n{SIGNATURE}{lead}"


def write_code(llm, args) -> tuple[list[Attempt], float]:
    params = SamplingParams(
        temperature=args.temperature,
        seed=args.seed,
        max_tokens=args.max_tokens,
        stop=["\n\n\n", "\n#", "\ndef "],
    )
    started = time.perf_counter()
    results = fork_completions(llm, [prompt_for(*approach) for approach in APPROACHES.values()], params)
    seconds = time.perf_counter() - started
    attempts = []
    for name, result in zip(APPROACHES, results):
        code = f"import functools\nimport math\n\n\n{SIGNATURE}{APPROACHES[name][1]}{result.text.rstrip()}\n"
        attempts.append(Attempt(name, code, len(result.raw.prompt_token_ids), result.raw.num_cached_tokens))
    return attempts, seconds


def judge(attempt: Attempt, limits: sandbox.Limits) -> None:
    verdict = sandbox.run_tests(attempt.code, TESTS, limits)
    attempt.passed, attempt.failed = verdict.passed, verdict.failed
    attempt.test_s, attempt.reason = verdict.seconds, verdict.reason


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpu-seconds", type=int, default=5, help="of each test run")
    parser.add_argument("--memory-mb", type=int, default=512, help="of each test run")
    parser.add_argument("--allow-network", action="store_true", help="run tests without a network namespace")
    args = parser.parse_args()
    console = common.console()
    limits = sandbox.Limits(
        cpu_s=args.cpu_seconds, memory_bytes=args.memory_mb << 20, allow_network=args.allow_network
    )
    with console.status("loading"):
        llm = LLM(args.model, kv_bytes=args.kv_bytes)
    with llm, console.status(f"{len(APPROACHES)} agents write"):
        attempts, seconds = write_code(llm, args)
    with common.progress(console) as progress, ThreadPoolExecutor(2) as threads:
        task = progress.add_task("test runs", total=len(attempts))
        for _ in threads.map(lambda attempt: judge(attempt, limits), attempts):
            progress.advance(task)
    attempts.sort(key=lambda attempt: (-attempt.passed, len(attempt.code)))
    computed = sum(attempt.prompt_tokens - attempt.cached_tokens for attempt in attempts)
    shown = common.table(
        f"{len(attempts)} approaches from one trunk, written in {seconds:.2f} s",
        ["rank", "approach", "wrote"],
        ["passed", "failed", "test s", "prompt tokens", "computed"],
    )
    for rank, one in enumerate(attempts, 1):
        body = common.one_line(one.code.partition(SIGNATURE)[2], 52)
        shown.add_row(
            str(rank), one.name, one.reason or body, str(one.passed), str(one.failed), f"{one.test_s:.2f}",
            str(one.prompt_tokens), str(one.prompt_tokens - one.cached_tokens),
        )  # fmt: skip
    console.print(shown)
    total = sum(attempt.prompt_tokens for attempt in attempts)
    console.print(f"{computed} of {total} prompt tokens were computed; the rest is the trunk, once.")
    best = attempts[0]
    if best.passed and not best.failed:
        console.print(f"\n{best.name}:\n{best.code}", highlight=False, markup=False)
    report = {"write_s": seconds, "computed": computed, "prompt_tokens": total}
    common.write_json(args.json, {**report, "attempts": [dataclasses.asdict(one) for one in attempts]})


if __name__ == "__main__":
    main()
