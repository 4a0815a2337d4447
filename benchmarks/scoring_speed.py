"""How fast is a cross-encoder that reads nothing twice? The same work for every system, in one run on one machine.

    python -m benchmarks.scoring_speed --out FILE.json

The work: users with a history of about 200 tokens and 100 candidates of about 26 tokens each, texts of the bundled
sample. sentence-transformers' ``CrossEncoder.predict`` reads every pair whole; it gets its best number format and batch
size, found here. Systems: ``pairwise`` (ours around the same network), ``shared`` (history and items read once, nothing
kept from before), ``cached`` (items' states known, token attention to the history), ``cached_cheap`` (without it).
On a CPU its settings are found on one user's pairs; on a GPU, which that would not fill, on all pairs together.
Weights are random where training would have put them: the work is the same, and no gate is closed. Peak memory is of
the process while the system ran, with what earlier ones left resident; sentence-transformers': of all that it tries.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import forget_peak, peak_gpu_memory_mb, peak_memory_mb, run_information, table, write_report
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import LastOut, hold_out
from llm_rerank.models.cross_encoder.item_table import build_table
from llm_rerank.models.cross_encoder.pairwise import PairwiseCrossEncoder
from llm_rerank.models.cross_encoder.reference import reference_score
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.scoring import Histories, score_lists
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.weights import DTypeName, best_device, default_folder
from llm_rerank.types import FloatArray, IntArray, Ragged

ITEM_TOKENS = 28  # about 26 are used: most texts are longer, some shorter
BATCH_SIZES = {"cpu": (16, 32, 100), "cuda": (100, 512, 2048)}
DTYPES: dict[str, tuple[DTypeName, ...]] = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
LEAST_REPEATS = 3


def kind_of(device: str) -> str:
    """Say whether a device is measured as a GPU or as a CPU."""
    return "cuda" if device.startswith("cuda") else "cpu"


def as_if_trained(model: HistoryCrossEncoder, seed: int) -> None:
    """Give the new parts weights and open the gates."""
    generator = torch.Generator().manual_seed(seed)
    network = model.network
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 0.005 if name.startswith("layers") else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * scale)
    model.network = network


def seconds_of(work: Callable[[], Any], repeats: int) -> list[float]:
    """Time some repeats, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def entry(seconds_a_user: Sequence[float], n_candidates: int) -> dict[str, float | None]:
    """Pairs per second by the median user, and the users' quantiles."""
    return {
        "pairs_per_second": n_candidates / float(np.median(seconds_a_user)),
        "p50_ms": 1e3 * float(np.median(seconds_a_user)),
        "p95_ms": 1e3 * float(np.quantile(seconds_a_user, 0.95)),
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(),
    }


def cached_system(
    texts: list[str],
    vectors: FloatArray,
    histories: Sequence[IntArray],
    candidates: Sequence[IntArray],
    **settings: Any,
) -> tuple[dict[str, Any], list[FloatArray], HistoryCrossEncoder]:
    """Time one user at a time and all at once from a table of all items; also the scores."""
    forget_peak()
    model = HistoryCrossEncoder.from_encoder(item_tokens=ITEM_TOKENS, **settings)
    as_if_trained(model, 0)
    network = model._for_scoring()
    began = time.perf_counter()
    items = build_table(model.network, model.reader, texts, vectors)
    seconds_build = time.perf_counter() - began
    lists = [one_user(history, row) for history, row in zip(histories, candidates, strict=True)]
    seconds = [float(np.median(seconds_of(partial(score_lists, network, items, *u), LEAST_REPEATS))) for u in lists]
    together = many_users(histories, candidates)
    at_once = float(np.median(seconds_of(lambda: score_lists(network, items, *together), LEAST_REPEATS)))
    scores = score_lists(network, items, *together)
    n_candidates = len(candidates[0])
    values = {
        **entry(seconds, n_candidates),
        "pairs_per_second_many_users": len(candidates) * n_candidates / at_once,
        "seconds_to_read_items": seconds_build,
        "table_mb": items.n_bytes / 2**20,
    }
    return values, np.split(scores, len(candidates)), model


def one_user(history: IntArray, candidates: IntArray) -> tuple[Histories, Ragged]:
    """Lay out a user's list as the scoring takes it."""
    return many_users([history], [candidates])


def many_users(histories: Sequence[IntArray], candidates: Sequence[IntArray]) -> tuple[Histories, Ragged]:
    """Lay out users' lists as the scoring takes them, every event a visit of weight 1."""
    rows = Ragged.from_lists(histories)
    ages = np.repeat(rows.offsets[1:], rows.lengths) - 1 - np.arange(len(rows.values))
    return Histories(rows, ages, np.ones(len(ages), dtype=np.float32)), Ragged.from_lists(candidates)


def greatest_difference(
    model: HistoryCrossEncoder,
    texts: list[str],
    vectors: FloatArray,
    histories: Sequence[IntArray],
    candidates: Sequence[IntArray],
) -> float:
    """Of the fast path from float32 states against the slow twin, on a few pairs of each user."""
    network = model.network
    items = build_table(network, model.reader, texts, vectors, state_dtype=torch.float32)
    states: dict[int, torch.Tensor] = {}
    for taken, packing, block in model.reader.batches(texts):
        for place, row in enumerate(taken):
            states[int(row)] = block[packing.offsets[place] : packing.offsets[place + 1]].cpu()
    worst = 0.0
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    unit = torch.from_numpy(vectors)
    for history, row in zip(histories, candidates, strict=True):
        fast = score_lists(network, items, *one_user(history, row[:5]))
        for score, code in zip(fast, row[:5], strict=True):
            slow = reference_score(
                weights,
                network.shape.n_heads,
                network.shape.n_upper,
                network.shape.norm_epsilon,
                states[int(code)],
                [states[int(item)] for item in history],
                list(range(len(history)))[::-1],
                [1.0] * len(history),
                unit[code],
                [unit[item] for item in history],
                cross_attention=model.cross_attention,
            )
            worst = max(worst, abs(slow - float(score)))
    return worst


def scores_with(
    model: HistoryCrossEncoder,
    texts: list[str],
    vectors: FloatArray,
    histories: Sequence[IntArray],
    candidates: Sequence[IntArray],
    *,
    state_dtype: torch.dtype,
) -> list[FloatArray]:
    """Score all users from a table whose token states have the format given."""
    items = build_table(model.network, model.reader, texts, vectors, state_dtype=state_dtype)
    return np.split(score_lists(model.network, items, *many_users(histories, candidates)), len(candidates))


def scores_from_cache(
    model: HistoryCrossEncoder,
    texts: list[str],
    vectors: FloatArray,
    histories: Sequence[IntArray],
    candidates: Sequence[IntArray],
) -> list[FloatArray]:
    """Score all users with the same weights from lower states that were kept on disk in int8."""
    with tempfile.TemporaryDirectory() as folder:
        other = HistoryCrossEncoder.from_encoder(
            item_tokens=model.item_tokens,
            cross_attention=True,
            dtype="float32",
            device=model.device,
            cache_folder=folder,
            cache_type="int8",
        )
        other.network = model.network
        return scores_with(other, texts, vectors, histories, candidates, state_dtype=torch.float32)


def same_top(first: Sequence[FloatArray], second: Sequence[FloatArray], k: int = 10) -> float:
    """Share of the first k positions that hold the same item."""
    return float(np.mean([np.argsort(-a)[:k] == np.argsort(-b)[:k] for a, b in zip(first, second, strict=True)]))


def cut_texts(texts: Sequence[str], n_tokens: int) -> list[str]:
    """Cut texts to so many tokens, as text again: every system then reads the same words."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(default_folder()))
    rows = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=n_tokens)["input_ids"]
    return tokenizer.batch_decode(rows)


def sentence_transformers_system(
    histories: list[list[str]], candidates: list[list[str]], device: str
) -> tuple[dict[str, Any], int, DTypeName]:
    """Time ``CrossEncoder.predict``: every format and batch size, then the best of them one user at a time and at once.

    Returns the figures, the batch size and the number format.
    """
    from sentence_transformers import CrossEncoder

    forget_peak()
    pairs = [
        [(" | ".join(reversed(history)), text) for text in row]
        for history, row in zip(histories, candidates, strict=True)
    ]
    everyone = [pair for user in pairs for pair in user]
    kind = kind_of(device)
    probe = pairs[0] if kind == "cpu" else everyone
    tried: dict[str, float] = {}
    absent: dict[str, str] = {}
    best: tuple[float, Any, int, str] | None = None
    for backend, dtype in (*(("torch", name) for name in DTYPES[kind]), ("onnx", None), ("openvino", None)):
        kwargs = {"dtype": getattr(torch, dtype)} if dtype else {"export": True}
        try:
            network = CrossEncoder(
                str(default_folder()),
                num_labels=1,
                device=device,
                local_files_only=True,
                backend=backend,
                model_kwargs=kwargs,
            )
        except Exception as error:  # whatever a backend that is not installed raises
            absent[backend] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        for batch_size in BATCH_SIZES[kind]:
            name = f"{dtype or backend}, batch {batch_size}"
            tried[name] = len(probe) / min(seconds_of(partial(network.predict, probe, batch_size=batch_size), 1))
            if best is None or tried[name] > best[0]:
                best = (tried[name], network, batch_size, name)
    assert best is not None
    _, network, batch_size, name = best
    predict = partial(network.predict, batch_size=batch_size)
    seconds = [min(seconds_of(partial(predict, user), 1)) for user in pairs]
    at_once = min(seconds_of(partial(predict, everyone), LEAST_REPEATS))
    found = {
        **entry(seconds, len(pairs[0])),
        "pairs_per_second_many_users": len(everyone) / at_once,
        "settings": name,
        "tried_pairs_per_second": tried,
        "not_tried": absent,
        "n_users": len(pairs),
    }
    format_name = name.split(",")[0]
    dtypes: dict[str, DTypeName] = {other: other for other in DTYPES["cuda"]}
    return found, batch_size, dtypes.get(format_name, "float32")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--pairwise-users", type=int, default=3, help="users of the systems that take seconds a user")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--history-items", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    device = best_device() if options.device == "auto" else options.device
    dataset = load_dataset("sample")
    trial = hold_out(dataset, LastOut(), "validation")
    texts = cut_texts([str(t) for t in Renderer().render_items(trial.items).texts], ITEM_TOKENS - 2)
    rng = np.random.default_rng(options.seed)
    histories = [rng.choice(len(texts), options.history_items, replace=False) for _ in range(options.users)]
    candidates = [rng.choice(len(texts), options.candidates, replace=False) for _ in range(options.users)]
    as_texts = [[[texts[code] for code in row] for row in rows] for rows in (histories, candidates)]
    vectors = SentenceEncoder(device=device, max_tokens=ITEM_TOKENS, dtype="float32").encode(texts)

    systems: dict[str, Any] = {}
    scores: dict[str, list[FloatArray]] = {}
    differences: dict[str, float] = {}
    n_tokens = 0.0
    formats = DTYPES[kind_of(device)]
    for label, crossing in (("cached_cheap", False), ("cached", True)):
        for dtype in formats:
            name = label if dtype == "float32" else f"{label}_{dtype}"
            systems[name], scores[name], model = cached_system(
                texts, vectors, histories, candidates, cross_attention=crossing, dtype=dtype, device=device
            )
            if dtype == "float32":
                few = slice(0, options.pairwise_users)
                differences[name] = greatest_difference(model, texts, vectors, histories[few], candidates[few])
                n_tokens = float(model.reader.token_ids(texts)[0].lengths.mean())
            if dtype == "float32" and crossing:
                exact = scores_with(model, texts, vectors, histories, candidates, state_dtype=torch.float32)
                rounded = scores_from_cache(model, texts, vectors, histories, candidates)
    agreement = {
        f"{name}_{dtype}": same_top(scores[name], scores[f"{name}_{dtype}"])
        for name in differences
        for dtype in formats[1:]
    }
    agreement["cached, states in float16"] = same_top(scores["cached"], exact)
    agreement["cached, states on disk in int8"] = same_top(rounded, exact)

    forget_peak()
    shared = HistoryCrossEncoder.from_encoder(
        item_tokens=ITEM_TOKENS, cross_attention=True, dtype="float32", device=device
    )
    as_if_trained(shared, 0)
    seconds = []
    for history, row in zip(*as_texts, strict=True):
        shared.network = shared.network  # forgets every text, so that each user's are read afresh
        began = time.perf_counter()
        shared.predict([history], [row])
        seconds.append(time.perf_counter() - began)
    systems["shared"] = entry(seconds[1:], options.candidates)

    few_histories, few_candidates = (rows[: options.pairwise_users] for rows in as_texts)
    system, batch_size, dtype_name = sentence_transformers_system(few_histories, few_candidates, device)
    systems["sentence_transformers"] = system
    forget_peak()
    pairwise = PairwiseCrossEncoder.from_encoder(item_tokens=ITEM_TOKENS, dtype=dtype_name, device=device)
    seconds = [
        min(seconds_of(partial(pairwise.predict, [history], [row], batch_size=batch_size), 1))
        for history, row in zip(few_histories, few_candidates, strict=True)
    ]
    systems["pairwise"] = entry(seconds, options.candidates)

    base = systems["sentence_transformers"]
    for values in systems.values():
        values["ratio"] = values["pairs_per_second"] / base["pairs_per_second"]
        if "pairs_per_second_many_users" in values:
            many = "pairs_per_second_many_users"
            values["ratio_many_users"] = values[many] / base[many]
    report = {
        "work": {
            "n_users": options.users,
            "n_candidates": options.candidates,
            "history_items": options.history_items,
            "tokens_an_item": n_tokens,
            "device": device,
        },
        "systems": systems,
        "pairs_per_second": {name: values["pairs_per_second"] for name, values in systems.items()},
        "max_abs_difference": differences,
        "same_top_10_positions": agreement,
        **information,
    }
    write_report(options.out, report)
    rows = [
        [
            name,
            f"{values['pairs_per_second']:,.0f}",
            f"{values['ratio']:,.1f}",
            f"{values['p50_ms']:,.1f}",
            f"{values['p95_ms']:,.1f}",
            f"{values.get('pairs_per_second_many_users', float('nan')):,.0f}",
            f"{values.get('ratio_many_users', float('nan')):,.1f}",
        ]
        for name, values in sorted(systems.items(), key=lambda pair: pair[1]["pairs_per_second"])
    ]
    print(table(["system", "pairs/s, one user", "ratio", "p50 ms", "p95 ms", "pairs/s, all users", "ratio"], rows))
    print(f"greatest difference from the slow twin: {differences}; same first 10 positions: {agreement}")
    return report


if __name__ == "__main__":
    main()
