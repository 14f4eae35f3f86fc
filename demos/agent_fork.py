#!/usr/bin/env python3
"""A live session of an agent, cloned: its memory goes on in several minds at once.

An agent talks for some turns. At the fork point its KV becomes a handle, and clones take it up in an engine
of their own, each with another task. With --full-cycle the first engine is destroyed in between, processes
and all, and the session goes on from the handle alone; what it says is compared, token for token, with
what it says uninterrupted.
"""

import tempfile
import time

import common
from thaw_vllm import LLM, ForkHandle, SamplingParams, fork

BRIEFING = """You are a travel guide who knows every street of Lisbon. You answer in one or two sentences.

What you remember of the city:
- The Alfama is the oldest quarter. Its lanes climb from the river to the castle, and the earthquake of
  1755 spared them.
- The Baixa below was built anew after 1755, in straight streets, by order of the Marquis of Pombal.
- Tram 28 runs from Martim Moniz through Graca, the Alfama and the Baixa to Estrela. It is full by ten in
  the morning.
- The National Tile Museum lies in an old convent in the east. Its great panel shows the city before the
  earthquake.
- The monastery in Belem was paid for with a tax on pepper. Vasco da Gama lies there, and so does Camoes.
- Pasteis de Belem have been baked next to the monastery since 1837. The line looks long and moves fast.
- The Gulbenkian museum has a garden with ducks, and rooms from Egypt to Lalique. On Sunday afternoons it
  is free.
- At the Ribeira market the stalls on the left sell fish and fruit, those on the right sell dinner until
  midnight.
- A bowl of caldo verde, a grilled sardine and a glass of wine cost less in Graca than a coffee does at
  the Chiado.
- The ferry to Cacilhas takes ten minutes and costs as much as a bus. From the other side one sees the
  whole city.
- When it rains, the arcades of the Terreiro do Paco are dry, and so are the tunnels of the Roman theatre.
- The elevator of Santa Justa is beautiful and slow. Whoever walks up the Rua do Carmo is there before it.
- Fado is sung in small rooms of the Mouraria, where it began. Nobody speaks while somebody sings.
- The aqueduct crosses the valley of Alcantara on the tallest stone arches there are. It stood in 1755
  when all else fell.
"""
TURNS = (
    "I arrive on Monday morning with one small bag. Where should I walk first?",
    "It is raining. What is there to see under a roof?",
)
TASKS = {
    "food": "Now tell me what I should eat tonight.",
    "history": "Now tell me what happened here in 1755.",
    "budget": "Now tell me how to spend as little as possible.",
}


def speech(args) -> SamplingParams:
    """Greedy, so that it can be compared; a small model repeats itself without the penalty."""
    return SamplingParams(temperature=0, repetition_penalty=1.1, max_tokens=args.max_tokens)


def converse(llm, args) -> list[dict]:
    """The session up to the fork point."""
    messages = [{"role": "system", "content": BRIEFING}]
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        (reply,) = llm.chat(messages, speech(args))
        messages.append({"role": "assistant", "content": reply.outputs[0].text})
    return messages


def prompt_of(llm, messages: list[dict], task: str) -> str:
    more = [*messages, {"role": "user", "content": task}]
    return llm.get_tokenizer().apply_chat_template(more, tokenize=False, add_generation_prompt=True)


def ask(llm, messages: list[dict], args):
    """Every task at once; (outputs, seconds)."""
    started = time.perf_counter()
    prompts = [prompt_of(llm, messages, task) for task in TASKS.values()]
    outputs = llm.generate(prompts, speech(args))
    return outputs, time.perf_counter() - started


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument(
        "--full-cycle", action="store_true", help="destroy the session's engine before it goes on"
    )
    parser.add_argument("--handle", help="directory for the handle; default: one that is removed")
    args = parser.parse_args()
    console = common.console()
    with tempfile.TemporaryDirectory() as scratch:
        where = args.handle or f"{scratch}/session"
        first = LLM(args.model, kv_bytes=args.kv_bytes)
        try:
            with console.status("the agent talks"):
                messages = converse(first, args)
            started = time.perf_counter()
            handle = fork(first, state_dir=where, label="lisbon")
            saved = time.perf_counter() - started
            with console.status("the session as it goes on by itself"):
                expected, _ = ask(first, messages, args)
            if args.full_cycle:
                first.close()
            with console.status("an engine of their own for the clones"):
                second = LLM(args.model, kv_bytes=args.kv_bytes)
            with second:
                started = time.perf_counter()
                kv = ForkHandle.load(where).hydrate(second)["kv"]
                restored = time.perf_counter() - started
                with console.status("the clones"):
                    outputs, seconds = ask(second, messages, args)
        finally:
            first.close()
    shown = common.table(
        f"{handle.num_kv_blocks} blocks, {kv['total_bytes'] / 1e6:.1f} MB: written in {saved * 1e3:.0f} ms, "
        f"taken up in {restored * 1e3:.0f} ms",
        ["clone", "says"],
        ["prompt tokens", "were there", "as uninterrupted"],
    )
    rows = []
    for name, mine, theirs in zip(TASKS, outputs, expected):
        same = mine.outputs[0].token_ids == theirs.outputs[0].token_ids
        text = mine.outputs[0].text
        counts = (len(mine.prompt_token_ids), mine.num_cached_tokens)
        shown.add_row(name, common.one_line(text), *map(str, counts), "the same" if same else "DIFFERS")
        rows.append({"name": name, "text": text, "prompt": counts[0], "cached": counts[1], "same": same})
    console.print(shown)
    what = "The first engine was gone" if args.full_cycle else "Both engines lived"
    console.print(f"{what}; {len(rows)} clones went on from one memory in {seconds:.2f} s.")
    times = {"save_s": saved, "restore_s": restored, "clones_s": seconds}
    common.write_json(args.json, {"full_cycle": args.full_cycle, **times, "kv": kv, "clones": rows})
    if not all(row["same"] for row in rows):
        raise SystemExit("a clone said something else than the session itself")


if __name__ == "__main__":
    main()
