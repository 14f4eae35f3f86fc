"""A worker that speaks ForkPool's JSON lines without an engine, and misbehaves as its first argument says.

It answers a prompt with its capitals and logs every request to the file FAKE_LOG names.
"""

import json
import os
import signal
import sys
import time


def say(message) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else "good"
    mark = os.environ.get("FAKE_MARK", "")

    def once() -> bool:
        """True for the first process that asks, of all that share a mark."""
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    for line in sys.stdin:
        request = json.loads(line)
        if os.environ.get("FAKE_LOG"):
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(json.dumps({"pid": os.getpid(), **request}) + "\n")
        op = request["op"]
        if op == mode.partition("-")[2]:
            fault = mode.partition("-")[0]
            if fault == "hang":
                time.sleep(3600)
            elif fault == "die" or fault == "dieonce" and once():
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault == "exit":
                sys.exit(3)
            elif fault == "garbage":
                print("Loading weights... 100%", flush=True)
                continue
            elif fault == "list":
                say([1])
                continue
            elif fault == "twice":
                say({"status": "ok"})
                say({"status": "ok"})
                continue
            elif fault == "strange":
                say({"status": "fine"})
                continue
            elif fault == "error":
                say({"status": "error", "type": "ValueError", "message": "no such thing", "traceback": "T"})
                if op == "boot":
                    sys.exit(3)
                continue
            elif fault == "fewer":
                say({"status": "ok", "gen_s": 0.1, "outputs": []})
                continue
            elif fault == "shapeless":
                say({"status": "ok", "gen_s": 0.1, "outputs": [{"text": 5}] * len(request["prompts"])})
                continue
        if op == "boot":
            say({"status": "ready", "boot_s": 0.25, "pid": os.getpid()})
        elif op == "hydrate":
            say({"status": "ok", "weights_s": 0.0, "kv_s": 0.0, "weights": None, "kv": {}})
        elif op == "generate":
            if mode == "picky" and any("bad" in prompt for prompt in request["prompts"]):
                say({"status": "error", "type": "ValueError", "message": "bad prompt", "traceback": ""})
                continue
            if mode == "fatal" and any("bad" in prompt for prompt in request["prompts"]):
                os.kill(os.getpid(), signal.SIGKILL)
            n = request["sampling_params"].get("n", 1)
            outputs = []
            for prompt in request["prompts"]:
                one = {"text": prompt.upper(), "token_ids": [len(prompt)], "finish_reason": "stop"}
                if n > 1 and mode != "single":
                    one["choices"] = [{**one, "text": f"{prompt.upper()} {i}"} for i in range(n)]
                outputs.append(one)
            say({"status": "ok", "gen_s": 0.1, "outputs": outputs})
        else:
            say({"status": "ok"})
            if op == "shutdown":
                return


if __name__ == "__main__":
    main()
