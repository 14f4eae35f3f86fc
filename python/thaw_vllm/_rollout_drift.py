"""What re-feeding a prefix, instead of resuming it, does to advantages."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from thaw_vllm._handle_files import read_small
from thaw_vllm._rollout import PathLike
from thaw_vllm._text import clipped, counted, printable, table


def _sign(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return (value > 0) - (value < 0)


def _drift_stats(result: Mapping[str, Any], name: str = "") -> dict[str, Any] | None:
    """How often re-feeding a prefix flips an advantage's sign; None where no pivot has an advantage."""
    pivots = result.get("pivots")
    if not isinstance(pivots, list) or not all(isinstance(pivot, dict) for pivot in pivots):
        raise ValueError("it is no JSON object with a list of pivots")
    config = result.get("config")
    configured = config.get("name") if isinstance(config, dict) else None
    eligible = refeed = floor = phantom = greedy_refeed = greedy_floor = 0
    for pivot in pivots:
        greedy_refeed += bool(pivot.get("greedy_divergence_refeed"))
        greedy_floor += bool(pivot.get("greedy_divergence_exact2"))
        exact, again, fed = (_sign(pivot.get(key)) for key in ("A_exact1", "A_exact2", "A_refeed"))
        if not (exact or again or fed):
            continue
        eligible += 1
        refeed += exact != fed
        floor += exact != again
        phantom += exact != fed and exact == again
    if not eligible:
        return None
    experiment = result.get("experiment")
    return {
        "name": configured if isinstance(configured, str) and configured else name,
        "experiment": experiment if isinstance(experiment, str) else "",
        "n_pivots": len(pivots),
        "n_eligible": eligible,
        "refeed_flips": refeed,
        "floor_flips": floor,
        "refeed_rate": refeed / eligible,
        "floor_rate": floor / eligible,
        "excess_pp": (refeed / eligible - floor / eligible) * 100,
        "phantom": phantom,
        "gdiv_refeed_rate": greedy_refeed / len(pivots),
        "gdiv_floor_rate": greedy_floor / len(pivots),
    }


def drift_stats(path: PathLike) -> dict[str, Any]:
    """What an experiment's results say, or a directory's: the object of `thaw rewind drift --json`."""
    whole = pathlib.Path(path)
    if not whole.exists():
        raise FileNotFoundError(f"{path}: no such file")
    listed = sorted(whole.glob("*.json"), key=str) if whole.is_dir() else [whole]
    results = []
    for file in listed:
        try:
            parsed = json.loads(read_small(file))
            found = _drift_stats(parsed if isinstance(parsed, dict) else {}, file.stem)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if found:
            results.append(found)
    results.sort(key=lambda one: (-one["excess_pp"], one["name"]))
    return {"results": results}


def drift_report(path: PathLike) -> str:
    """What `thaw rewind drift` shows, of one result or of a directory of them."""
    results = drift_stats(path)["results"]
    if not results:
        return f"no pivots with an advantage in {os.fspath(path)}\n"

    def percent(part: float) -> str:
        return f"{part * 100:.1f} %"

    if len(results) > 1:
        rows = [("config", "eligible", "re-fed", "floor", "excess")]
        for one in results:
            rates = percent(one["refeed_rate"]), percent(one["floor_rate"])
            excess = f"{one['excess_pp']:+.1f} points"
            rows.append((clipped(one["name"], 40), f"{one['n_eligible']:,}", *rates, excess))
        return table(rows)
    one = results[0]
    head = f"drift of {printable(one['name'])}"
    head += f", {printable(one['experiment'])}" if one["experiment"] else ""
    head += f": {counted(one['n_pivots'], 'pivot')}, {one['n_eligible']:,} with an advantage\n\n"
    rows2 = [
        ("re-fed", f"{percent(one['refeed_rate'])}, {one['refeed_flips']:,} of {one['n_eligible']:,}"),
        ("resumed", f"{percent(one['floor_rate'])}, {one['floor_flips']:,} of {one['n_eligible']:,} (floor)"),
        ("excess", f"{one['excess_pp']:+.1f} points above the floor"),
        ("phantom", f"{counted(one['phantom'], 'pivot')} flip when re-fed, but not when resumed"),
        ("greedy", f"the first token differs at {percent(one['gdiv_refeed_rate'])} of the pivots re-fed, "
                   f"{percent(one['gdiv_floor_rate'])} resumed"),
    ]  # fmt: skip
    return head + "  flips of its sign against an exact resume\n" + table(rows2, "  ")
