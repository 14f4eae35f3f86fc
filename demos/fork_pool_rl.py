#!/usr/bin/env python3
"""The receipt: rounds of branches from one trunk on a ForkPool that stays loaded.

Each round samples branches from the trunk, scores them, and appends the best one to the trunk, as a search
with a policy does. The table says what every round computed and what was there already.
"""

import dataclasses
import time

import common
from thaw_vllm import ForkPool, SamplingParams

TRUNK = (
    "Notes of a careful engineer on how to make a service that never loses a request.\n"
    "Every request has an owner, a deadline and a way to be taken back. Nothing waits without a bound.\n"
)


@dataclasses.dataclass
class Round:
    """One fan-out. `computed` and `cached` count prompt tokens of all branches."""

    number: int
    trunk_tokens: int
    seconds: float
    generated: int
    computed: int
    cached: int
    best_score: float
    best: str


def score(text: str) -> float:
    """A stand-in for a reward: the share of words that are not repeated."""
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0


def run_round(pool, number: int, trunk: str, args) -> tuple[Round, str]:
    params = SamplingParams(temperature=0.9, max_tokens=args.max_tokens, ignore_eos=True)
    prompts = [f"{trunk}\nPoint {number + 1}.{branch + 1}:" for branch in range(args.branches)]
    started = time.perf_counter()
    results = pool.fork_completions(None, prompts, params)
    seconds = time.perf_counter() - started
    best = max(results, key=lambda result: score(result.text))
    sizes = [len(result.raw.prompt_token_ids) for result in results]
    cached = sum(result.raw.num_cached_tokens for result in results)
    done = Round(
        number=number,
        trunk_tokens=min(sizes),
        seconds=seconds,
        generated=sum(len(result.token_ids) for result in results),
        computed=sum(sizes) - cached,
        cached=cached,
        best_score=score(best.text),
        best=common.one_line(best.text),
    )
    return done, trunk + best.text


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--branches", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--trunk-repeats", type=int, default=12, help="how often the trunk's text is repeated"
    )
    args = parser.parse_args()
    console = common.console()
    with ForkPool() as pool:
        started = time.perf_counter()
        pool.init_pool(args.model, args.workers, kv_bytes=args.kv_bytes)
        ready = time.perf_counter() - started
        trunk, rounds = TRUNK * args.trunk_repeats, []
        with common.progress(console) as progress:
            task = progress.add_task("rounds", total=args.rounds)
            for number in range(args.rounds):
                done, trunk = run_round(pool, number, trunk, args)
                rounds.append(done)
                progress.advance(task)
    shown = common.table(
        f"{args.branches} branches x {args.max_tokens} tokens; pool ready in {ready:.2f} s",
        ["round", "best branch"],
        ["score", "trunk tokens", "prompt computed", "prompt there", "generated", "s", "tokens/s"],
    )
    for one in rounds:
        shown.add_row(
            str(one.number), one.best, f"{one.best_score:.2f}", str(one.trunk_tokens), str(one.computed),
            str(one.cached), str(one.generated), f"{one.seconds:.2f}", f"{one.generated / one.seconds:.0f}",
        )  # fmt: skip
    console.print(shown)
    computed, cached = sum(one.computed for one in rounds), sum(one.cached for one in rounds)
    console.print(f"{cached} of {computed + cached} prompt tokens were never computed again.")
    report = {"ready_s": ready, "computed": computed, "cached": cached}
    common.write_json(args.json, {**report, "rounds": [dataclasses.asdict(one) for one in rounds]})


if __name__ == "__main__":
    main()
