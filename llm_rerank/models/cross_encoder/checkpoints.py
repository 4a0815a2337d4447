"""Where a fine-tuning stands, on disk: weights, optimiser, best step so far. Written whole or not at all, no pickle.

Another process computes the same offsets with other last bits (its number of threads is enough), so a run is known by
what is exact (``RunIdentity``), and its lists are kept beside: near ones are the same work, and the kept ones are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_rerank.folders import CURRENT, open_folder, save_folder
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.storage import read_arrays, read_json, write_arrays, write_json
from llm_rerank.types import Ragged, StorageError

MOST_DIFFERENCE = 0.01
"""Of an offset (log-odds) or a weight, between two computations of the same lists."""
LEAST_IN_COMMON = 0.99
"""Share of candidates: where offsets are nearly equal, last bits decide who is the hundredth of a list."""

RunIdentity = Mapping[str, str]
"""A hash of each thing that a fine-tuning's outcome depends on and that is the same in every process, by its name."""


@dataclass
class Progress:
    """A fine-tuning between two steps.

    step: steps done. weights: of the module being trained. moments: the optimiser's tensors, "<parameter>/<name>".
    best_step, best_weights: of the best evaluation so far. log: one entry an evaluation. losses: of the steps since the
    last evaluation.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    best_step: int
    best_weights: dict[str, Tensor]
    log: list[dict[str, Any]]
    losses: list[float]


def run_identity(
    settings: Mapping[str, Any],
    readers: str,
    weights: Mapping[str, Tensor],
    texts: Iterable[str],
    lists: Sequence[TrainingLists],
) -> RunIdentity:
    """Hash what a fine-tuning works on, as far as it is exact.

    settings: of training and network. readers: fingerprints of what is frozen. weights: of the network before anything
    was fitted. texts: of all items. lists: of them the histories, their times, and what was taken.
    """
    exact = [
        np.ascontiguousarray(array)
        for part in lists
        for array in (
            part.cases.history.values,
            part.cases.history.offsets,
            part.cases.history_times,
            part.cases.candidates.values[part.positive],
        )
    ]
    return {
        "settings": _digest([repr(sorted(settings.items())).encode()]),
        "encoder": _digest([readers.encode()]),
        "first weights": _digest(
            name.encode() + tensor.detach().cpu().numpy().tobytes() for name, tensor in sorted(weights.items())
        ),
        "texts": _digest(str(text).encode("utf-8", "replace") for text in texts),
        "users, histories or targets": _digest(array.tobytes() for array in exact),
    }


def optimizer_moments(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Copy AdamW's state into named tensors. names: name of each parameter by ``id``."""
    moments = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                moments[f"{names[id(parameter)]}/{key}"] = torch.as_tensor(value).detach().cpu().clone()
    return moments


def restore_moments(optimizer: torch.optim.Optimizer, names: Mapping[int, str], moments: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_moments`` copied."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[id(parameter)]}/"
            state = {key[len(prefix) :]: value for key, value in moments.items() if key.startswith(prefix)}
            # AdamW counts its steps on the CPU
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device) for key, value in state.items()
            }


def save_progress(folder: Path, run: RunIdentity, lists: Sequence[TrainingLists], progress: Progress) -> None:
    """Write atomically: a process killed at any moment leaves the last checkpoint or this one."""

    def write(target: Path) -> None:
        groups = {"weights": progress.weights, "moments": progress.moments, "best": progress.best_weights}
        for name, tensors in groups.items():
            write_arrays(target / f"{name}.safetensors", {key: t.cpu().numpy() for key, t in tensors.items()})
        for number, part in enumerate(lists):
            write_arrays(target / f"lists{number}.safetensors", _arrays(part))
        write_json(
            target / "progress.json",
            {
                "run": dict(run),
                "step": progress.step,
                "best_step": progress.best_step,
                "log": progress.log,
                "losses": progress.losses,
            },
        )

    save_folder(folder, write)


def load_progress(
    folder: Path, run: RunIdentity, lists: Sequence[TrainingLists]
) -> tuple[Progress, list[TrainingLists]] | None:
    """Read a checkpoint and the lists that it was made with; None where there is none.

    Raises StorageError, saying why, where there is one that cannot be gone on from: damaged, or of another run.
    """
    if not (folder / CURRENT).exists():
        return None
    content = open_folder(folder)
    stored = read_json(content / "progress.json")
    if not isinstance(stored["run"], dict):
        raise StorageError("an earlier version wrote it")
    differing = [name for name, digest in run.items() if stored["run"].get(name) != digest]
    if differing:
        raise StorageError(f"it is of a run with other {', other '.join(differing)}")
    kept = [
        _kept_lists(now, read_arrays(content / f"lists{number}.safetensors")[0]) for number, now in enumerate(lists)
    ]
    groups = {
        name: {key: torch.from_numpy(array) for key, array in read_arrays(content / f"{name}.safetensors")[0].items()}
        for name in ("weights", "moments", "best")
    }
    progress = Progress(
        stored["step"],
        groups["weights"],
        groups["moments"],
        stored["best_step"],
        groups["best"],
        stored["log"],
        stored["losses"],
    )
    return progress, kept


def _arrays(lists: TrainingLists) -> dict[str, np.ndarray]:
    """Name what of lists another process may compute with other last bits."""
    candidates = lists.cases.candidates
    return {
        "candidates": candidates.values,
        "bounds": candidates.offsets,
        "positive": lists.positive,
        "offsets": lists.offsets,
        "history_weights": lists.cases.history_weights,
    }


def _kept_lists(now: TrainingLists, kept: Mapping[str, np.ndarray]) -> TrainingLists:
    """Put what was kept in the place of what was computed now, for the same users and histories.

    Raises StorageError where the two are too far from each other to be one computation.
    """
    candidates = Ragged(kept["candidates"], kept["bounds"])
    pairs = [
        rows.row_of_value * (max(candidates.values.max(), now.cases.candidates.values.max()) + 1) + rows.values
        for rows in (candidates, now.cases.candidates)
    ]
    _, then, here = np.intersect1d(*pairs, return_indices=True)
    common = len(then) / max(map(len, pairs))
    if common < LEAST_IN_COMMON:
        raise StorageError(f"its lists have {common:.0%} of their candidates in common with those of now")
    for name, first, second in (
        ("offsets", kept["offsets"][then], now.offsets[here]),
        ("weights of histories", kept["history_weights"], now.cases.history_weights),
    ):
        difference = float(np.abs(first - second).max(initial=0.0))
        if difference > MOST_DIFFERENCE:
            raise StorageError(f"its {name} differ from those of now by up to {difference:.2g}")
    cases = replace(now.cases.with_candidates(candidates), history_weights=kept["history_weights"])
    return TrainingLists(cases, kept["positive"], kept["offsets"])


def _digest(parts: Iterable[bytes]) -> str:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(len(part).to_bytes(8, "little") + part)
    return sha256.hexdigest()
