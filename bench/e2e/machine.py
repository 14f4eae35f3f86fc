"""What a figure was measured on."""

import datetime
import os
import pathlib
import platform
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def describe_machine() -> dict:
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", cpuinfo)
    flags = set((re.search(r"flags\s*: (.*)", cpuinfo) or [None, ""])[1].split())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if name in flags],
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }
