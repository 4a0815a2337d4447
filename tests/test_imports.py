"""What imports what: data runs one way through the layers, and ``import llm_rerank`` is light."""

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llm_rerank"

LAYERS = {
    "": ["types", "config", "metrics", "statistics", "reliability", "strata", "storage", "folders", "steps"],
    "data": [
        "values",
        "vectors",
        "whole_numbers",
        "object_columns",
        "times",
        "columns",
        "layouts",
        "text_encoding",
        "readers",
        "writers",
        "downloads",
        "retail",
        "datasets",
        "id_index",
        "frames",
        "events",
        "event_doubts",
        "candidates",
        "impressions",
        "schema",
        "event_mappings",
        "splits",
        "merging",
        "cases",
        "missing",
        "item_statistics",
        "features",
        "rendering",
        "redaction",
    ],
    "models": ["unit_length", "scoring", "changes", "conditional_logit"],
    "models.semantic": [
        "weights",
        "cache",
        "sentiment",
        "encoder",
        "images",
        "whitening",
        "index",
        "text_features",
        "vector_scores",
        "similarity",
        "media",
        "lexical",
    ],
    "models.collaborative": [
        "popularity",
        "item_item",
        "neighbours",
        "item_inverse",
        "inverse_updates",
        "ease",
        "text_kernel",
        "text_ease",
        "attributes",
        "descent",
        "fold_in",
        "factorization",
        "als",
        "neural_training",
        "neural",
        "sequence_rows",
        "sequence_networks",
        "sequence_training",
        "sequence_tables",
        "sequence_texts",
        "sequence",
    ],
    "models.cross_encoder": [
        "lists",
        "list_metrics",
        "packing",
        "token_records",
        "state_segments",
        "state_cache",
        "discarding",
        "history_encoder",
        "reference",
        "item_states",
        "item_table",
        "text_table",
        "scoring",
        "scorer",
        "pairwise_texts",
        "pairwise_network",
        "pairwise_training",
        "pairwise",
        "training_settings",
        "training_texts",
        "list_scorer",
        "warm_start",
        "checkpoints",
        "training",
        "training_plot",
    ],
    "models.language_model": [
        "weights",
        "reference",
        "causal",
        "scorer",
        "windows",
        "answers",
        "chat_questions",
        "chat_server",
        "chat",
    ],
    "recommendation": [
        "log",
        "event_log_file",
        "event_log",
        "candidates",
        "failures",
        "components",
        "specs",
        "guard",
        "newcomers",
        "blend_columns",
        "priors",
        "drift",
        "cross_fitting",
        "fusion",
        "residual",
        "short_histories",
        "calibration",
        "calibration_report",
        "risk_control",
        "thresholds",
        "inputs",
        "stage",
        "holdout",
        "held_out",
        "parts",
        "judging",
        "refit",
        "upstream",
        "training_lists",
        "cross_reading",
        "fitting",
        "impressions",
        "state",
        "estimate",
        "item_groups",
        "planning",
        "live_events",
        "histories",
        "exploration",
        "diversity",
        "deciding",
        "decision_facts",
        "phrases",
        "explanation",
        "comparing",
        "component_classes",
        "saving",
        "item_changes",
        "erasing",
        "exporting",
        "privacy",
        "updating",
        "learning",
        "fine_tuning",
        "questions",
        "asking",
        "changing",
        "reranker",
        "reordering",
        "answers",
        "fallbacks",
        "answering",
        "known_events",
        "live_state",
        "live_privacy",
        "live",
        "checking",
    ],
    "evaluation": [
        "scales",
        "tables",
        "protocols",
        "comparison",
        "tested_lists",
        "shown_lists",
        "systems",
        "demonstration",
        "diversity_curve",
        "svg",
        "charts",
        "timeline",
        "page",
        "report_probability",
        "report_sections",
        "report_examples",
        "report",
    ],
    "service": [
        "ids",
        "failures",
        "metrics",
        "values",
        "settings",
        "fields",
        "bodies",
        "batching",
        "catalogue",
        "limits",
        "observing",
        "security",
        "context",
        "document",
        "answers",
        "records",
        "operations",
        "searching",
        "ranking",
        "explaining",
        "events",
        "users",
        "preview",
        "cohere",
        "app",
        "connections",
    ],
    "doors": ["options", "evaluation_commands", "fit_commands", "live_commands", "serve_command", "cli", "__main__"],
}
"""A module may import those before it, in its own folder and in the folders above: nothing below."""

ORDER = [
    f"llm_rerank.{folder}.{name}" if folder not in ("", "doors") else f"llm_rerank.{name}"
    for folder, names in LAYERS.items()
    for name in names
]

HEAVY = ("torch", "faiss", "transformers", "sklearn", "scipy", "pyarrow", "pandas")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str, modules: set[str]) -> set[str]:
    """Modules of ours that a source names: imports at any depth, and strings that an import may be made of."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            # "from package import module" names a module; "from module import name" does not
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
            found.add(node.value)
    return found & modules


def test_every_kind_of_import_is_seen():
    source = """
import a.b
from a import c
from a.d import name
def f():
    from a.e import name
    import_module("a.f")
if TYPE_CHECKING:
    from a.g import name
"""
    modules = {"a.b", "a.c", "a.d", "a.e", "a.f", "a.g", "a.h"}
    assert imported(source, modules) == modules - {"a.h"}


def test_every_module_has_its_place():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(MODULES.keys() - packages) == sorted(ORDER)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "llm_rerank"])
def test_imports_go_up_only(name):
    # llm_rerank/__init__.py alone names what it loads lazily
    allowed = ORDER[: ORDER.index(name)] if name in ORDER else []
    packages = set(MODULES) - set(ORDER)
    below = imported(MODULES[name].read_text(encoding="utf-8"), set(MODULES)) - set(allowed) - packages - {name}
    assert not below, f"{name} imports {sorted(below)}; it may import what stands before it in LAYERS"


def test_every_module_can_be_imported():
    names = [name for name in MODULES if not name.endswith("__main__")]
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def import_light() -> dict:
    script = """
import json, sys, time
started = time.perf_counter()
import llm_rerank
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
    return json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def test_import_is_light():
    runs = [import_light() for _ in range(5)]
    assert set(runs[0]["loaded"]).isdisjoint(HEAVY)
    assert statistics.median(run["seconds"] for run in runs) < 0.2


@pytest.mark.parametrize("module", ["types", "config", "storage", "cli"])
def test_light_modules_stay_light(module):
    script = f"import sys, llm_rerank.{module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()).isdisjoint(HEAVY)


def test_public_names_load_when_used_and_others_say_what_there_is():
    import llm_rerank

    for name in llm_rerank.__all__:
        assert getattr(llm_rerank, name) is not None
        assert name in dir(llm_rerank)
    with pytest.raises(AttributeError, match="no attribute 'Rerankr'; it has .*Reranker"):
        _ = llm_rerank.Rerankr
