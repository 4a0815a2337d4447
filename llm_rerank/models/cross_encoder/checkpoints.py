"""Where a fine-tuning stands, on disk: weights, optimiser, best step so far. Written whole or not at all, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_rerank.folders import open_folder, save_folder
from llm_rerank.storage import read_arrays, read_json, write_arrays, write_json
from llm_rerank.types import StorageError


@dataclass
class Progress:
    """A fine-tuning between two steps.

    step: steps done. weights: of the module being trained. moments: the optimiser's tensors, "<parameter>/<name>".
    best_step, best_weights: of the best evaluation so far. log: one entry an evaluation.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    best_step: int
    best_weights: dict[str, Tensor]
    log: list[dict[str, Any]]


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


def save_progress(folder: Path, run: str, progress: Progress) -> None:
    """Write atomically: a process killed at any moment leaves the last checkpoint or this one.

    run: fingerprint of settings and lists.
    """

    def write(target: Path) -> None:
        groups = {"weights": progress.weights, "moments": progress.moments, "best": progress.best_weights}
        for name, tensors in groups.items():
            write_arrays(target / f"{name}.safetensors", {key: t.cpu().numpy() for key, t in tensors.items()})
        write_json(
            target / "progress.json",
            {"run": run, "step": progress.step, "best_step": progress.best_step, "log": progress.log},
        )

    save_folder(folder, write)


def load_progress(folder: Path, run: str) -> Progress | None:
    """Read a checkpoint; None where there is none, where it is damaged, or where it is of another run."""
    try:
        content = open_folder(folder)
        stored = read_json(content / "progress.json")
        if stored["run"] != run:
            return None
        groups = {
            name: {
                key: torch.from_numpy(array) for key, array in read_arrays(content / f"{name}.safetensors")[0].items()
            }
            for name in ("weights", "moments", "best")
        }
    except (StorageError, FileNotFoundError):
        return None
    return Progress(
        stored["step"], groups["weights"], groups["moments"], stored["best_step"], groups["best"], stored["log"]
    )
