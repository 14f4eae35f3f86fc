#!/usr/bin/env python3
"""Rollouts from a pivot, as tree-GRPO takes them: one reasoning trunk, many continuations, scored as a group.

The model reasons about a small sum; somewhere in its reasoning is the pivot; from there it continues in as
many ways as asked for. Rewards become advantages within the group, and every rollout is written down for
`thaw rewind pivot DIR`.
"""

import re
import statistics
import tempfile
import time

import common
from thaw_vllm import LLM, SamplingParams, capture_rollouts, rewind

EXAMPLES = (
    (12, 30), (7, 15), (21, 8), (33, 14), (5, 46), (18, 23), (40, 11), (9, 27), (16, 35), (28, 6),
)  # fmt: skip
QUESTION = (17, 25)


def trunk_text() -> str:
    """Worked examples, then the question."""
    lines = ["Sums, worked out step by step.", ""]
    for a, b in EXAMPLES:
        tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
        lines.append(f"Question: What is {a} + {b}?")
        lines.append(f"Reasoning: The tens give {tens}, the ones give {ones}, together {tens + ones}.")
        lines.append(f"Answer: {a + b}")
        lines.append("")
    a, b = QUESTION
    return "\n".join([*lines, f"Question: What is {a} + {b}?", "Reasoning:"])


def reward(text: str) -> float:
    """1 for the right answer, less the farther off it is, 0 where there is none."""
    found = re.search(r"Answer:\s*(\d+)", text)
    if not found:
        return 0.0
    return max(0.0, 1 - abs(int(found.group(1)) - sum(QUESTION)) / sum(QUESTION))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--pivot", type=int, default=4, help="generated tokens of the trunk before the pivot")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", help="directory for the rollouts; default: one that is removed")
    args = parser.parse_args()
    console = common.console()
    with tempfile.TemporaryDirectory() as scratch, LLM(args.model, kv_bytes=args.kv_bytes) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=max(1, args.pivot), ignore_eos=True)
        (first,) = llm.generate(trunk_text(), greedy)
        pivot = first.prompt_token_ids + first.outputs[0].token_ids[: args.pivot]
        params = SamplingParams(
            temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed, stop=["\n\n"]
        )
        before = llm.status()["workers"][0]["stats"]["tokens_prefilled"]
        started = time.perf_counter()
        with console.status(f"{args.rollouts} rollouts from a pivot at token {len(pivot)}"):
            paths = capture_rollouts(
                llm, pivot, params, out_dir=args.out or scratch, n=args.rollouts, logprobs=3
            )
        seconds = time.perf_counter() - started
        prefilled = llm.status()["workers"][0]["stats"]["tokens_prefilled"] - before
        rollouts = [rewind.summarize_rollout(path) for path in paths]
        tree = rewind.pivot_rollouts(args.out or scratch)
    lead = first.outputs[0].text
    rewards = [reward(lead + rollout["text"]) for rollout in rollouts]
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    shown = common.table(
        f"What is {QUESTION[0]} + {QUESTION[1]}? The pivot is behind {common.one_line(lead)!r}",
        ["rollout", "continuation"],
        ["tokens", "logprob", "reward", "advantage"],
    )
    listed = []
    for rollout, value in sorted(zip(rollouts, rewards), key=lambda pair: -pair[1]):
        advantage = (value - mean) / spread if spread else 0.0
        logprob = rollout["seq_logprob"] or 0.0
        shown.add_row(
            rollout["label"], common.one_line(rollout["text"], 48), str(rollout["n_tokens"]),
            f"{logprob:.1f}", f"{value:.2f}", f"{advantage:+.2f}",
        )  # fmt: skip
        entry = {key: rollout[key] for key in ("label", "text", "n_tokens", "seq_logprob")}
        listed.append({**entry, "reward": value, "advantage": advantage})
    console.print(shown)
    verdict = [line for line in tree.splitlines() if line.startswith(("  best branch", "  decided by"))]
    console.print("\n".join(verdict), highlight=False, markup=False)
    alone = args.rollouts * len(pivot)
    console.print(
        f"{args.rollouts} rollouts in {seconds:.2f} s computed {prefilled} prompt tokens; "
        f"one by one without a fork they would compute {alone}."
    )
    report = {"pivot_tokens": len(pivot), "prefilled": prefilled, "without_fork": alone, "seconds": seconds}
    common.write_json(args.json, {**report, "mean_reward": mean, "rollouts": listed})


if __name__ == "__main__":
    main()
