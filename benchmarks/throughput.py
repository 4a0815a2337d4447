"""How many users a second does a whole rerank serve, by number of candidates and of items? Measured on made-up shops.

    python -m benchmarks.throughput --out FILE.json

Made-up shops of 1,000 to 50,000 items (titles from a small vocabulary, users who like a few themes), each fitted
without a refit and with the cross-encoder kept, then every user reranked with 10, 100 and 1,000 candidates drawn at
random. Time counts from the frame of candidates to the frame of results. The slope is that of log seconds a user over
log candidates, and over log items. Peak memory is of the process during the reranks, without the fit's.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import forget_peak, peak_memory_mb, run_information, table, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.reranker import Reranker

N_USERS_RERANKED = 200
N_THEMES = 40
KINDS = ("lamp", "kettle", "chair", "drill", "scarf", "notebook", "backpack", "speaker", "mug", "ladder")
TRAITS = ("oak", "steel", "linen", "blue", "folding", "quiet", "heavy duty", "small", "rechargeable", "matte")


def made_up_shop(n_items: int, seed: int, n_users: int = 3_000, events_a_user: int = 12) -> tuple[Any, Any]:
    """Draw events (user_id, item_id, timestamp) and items (item_id, title); each user keeps to three themes."""
    rng = np.random.default_rng(seed)
    themes = np.arange(n_items) % N_THEMES
    titles = [
        f"{TRAITS[(code // 7) % 10]} {KINDS[themes[code] % 10]} series {themes[code]} model {code}, "
        f"{TRAITS[(code // 3) % 10]}"
        for code in range(n_items)
    ]
    liked = rng.integers(0, N_THEMES, (n_users, 3))
    theme = liked[np.repeat(np.arange(n_users), events_a_user), rng.integers(0, 3, n_users * events_a_user)]
    # within a theme a few items sell most
    place = np.minimum(rng.geometric(0.05, len(theme)) - 1, n_items // N_THEMES - 1)
    events = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(n_users), events_a_user),
            "item_id": theme + N_THEMES * place,
            "timestamp": 1_600_000_000 + rng.integers(0, 365 * 86_400, len(theme)),
        }
    )
    return events, pd.DataFrame({"item_id": np.arange(n_items), "title": titles})


def drawn_candidates(n_items: int, n_candidates: int, seed: int) -> pd.DataFrame:
    """Draw distinct candidates for each of the first users."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([rng.choice(n_items, n_candidates, replace=False) for _ in range(N_USERS_RERANKED)])
    return pd.DataFrame({"user_id": np.repeat(np.arange(N_USERS_RERANKED), n_candidates), "item_id": codes})


def slope(x: Sequence[float], seconds: Sequence[float]) -> float:
    """Least-squares slope of log seconds over log x: 1 is proportional, 0 is flat."""
    return float(np.polyfit(np.log(x), np.log(seconds), 1)[0])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 5_000, 10_000, 50_000])
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100, 1_000])
    parser.add_argument("--steps", type=int, default=20, help="steps of fine-tuning: enough to have the parts there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    results: list[dict[str, Any]] = []
    profile = ""
    for n_items in options.items:
        events, items = made_up_shop(n_items, options.seed)
        config = RerankerConfig(
            refit=False, cross_encoder="always", fine_tune_steps=options.steps, candidates_per_source=50
        )
        began = time.perf_counter()
        reranker = Reranker(config, verbose=False).fit(events, items)
        seconds_fit = time.perf_counter() - began
        names = [component.name for component in reranker.components]
        for n_candidates in options.candidates:
            candidates = drawn_candidates(n_items, n_candidates, options.seed)
            forget_peak()
            reranker.rerank(candidates.head(n_candidates))  # first use builds what is kept
            seconds = []
            for _ in range(3):
                began = time.perf_counter()
                reranker.rerank(candidates)
                seconds.append(time.perf_counter() - began)
            results.append(
                {
                    "n_items": n_items,
                    "n_candidates": n_candidates,
                    "users_per_second": N_USERS_RERANKED / float(np.median(seconds)),
                    "seconds_fit": seconds_fit,
                    "components": names,
                    "peak_memory_mb": peak_memory_mb(),
                }
            )
        print(f"{n_items:,} items: fit {seconds_fit:.0f} s", flush=True)
        if n_items == options.items[0]:
            profiler = cProfile.Profile()
            profiler.runcall(reranker.rerank, drawn_candidates(n_items, 100, options.seed))
            stream = io.StringIO()
            pstats.Stats(profiler, stream=stream).sort_stats("tottime").print_stats(12)
            profile = "\n".join(stream.getvalue().splitlines()[4:])
            for folder in (sysconfig.get_path("purelib"), str(Path(__file__).resolve().parents[1])):
                profile = profile.replace(folder, "")
    seconds_a_user = {(r["n_items"], r["n_candidates"]): 1 / r["users_per_second"] for r in results}
    slopes = {
        "over_candidates": {
            n: slope(options.candidates, [seconds_a_user[n, k] for k in options.candidates]) for n in options.items
        },
        "over_items": {
            k: slope(options.items, [seconds_a_user[n, k] for n in options.items]) for k in options.candidates
        },
    }
    report = {
        "n_users": N_USERS_RERANKED,
        "results": results,
        "slopes": {kind: {str(key): value for key, value in found.items()} for kind, found in slopes.items()},
        "profile_100_candidates": profile,
        **information,
    }
    write_report(options.out, report)
    rows = [
        [f"{r['n_items']:,}", f"{r['n_candidates']:,}", f"{r['users_per_second']:,.0f}", f"{r['peak_memory_mb']:,.0f}"]
        for r in results
    ]
    print(table(["items", "candidates", "users/s", "peak MB"], rows))
    print("slope of log seconds over log candidates:", {n: round(v, 2) for n, v in slopes["over_candidates"].items()})
    print("slope of log seconds over log items:", {k: round(v, 2) for k, v in slopes["over_items"].items()})
    print(profile)
    return report


if __name__ == "__main__":
    main()
