"""Fine-tune the cross-encoder alone on a shop's files, and leave it in a folder with its log and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.times import TimeUnit
from llm_rerank.folders import TUNED_MODEL, check_target, save_folder
from llm_rerank.recommendation.cross_reading import tune_on_lists
from llm_rerank.recommendation.held_out import HeldOutCases
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.learning import UNREAD, within_retention
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import stand_on_parts
from llm_rerank.recommendation.planning import make_encoder, read_shop, sentiment_of
from llm_rerank.recommendation.specs import specs_for
from llm_rerank.recommendation.training_lists import build_training_lists
from llm_rerank.storage import write_json
from llm_rerank.types import DataError, DataReport

if TYPE_CHECKING:
    from accelerate import PartialState

    from llm_rerank.models.cross_encoder.training import FineTuning
    from llm_rerank.models.cross_encoder.training_settings import TrainingSettings

LOG, PLOT, CHECKPOINT = "training.json", "training.svg", "checkpoint"


def fine_tune_on_shop(
    interactions: Any,
    items: Any,
    out: str | Path,
    *,
    config: RerankerConfig | None = None,
    settings: TrainingSettings | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    encoding: str | None = None,
    verbose: bool = True,
) -> FineTuning:
    """Fit the other components on the past, fine-tune on what they leave unexplained, save to ``out``.

    ``out/model`` is what ``HistoryCrossEncoder.load`` reads, by that name or by ``out``'s; ``out/training.json`` and
    ``out/training.svg`` hold the course; ``out/checkpoint`` is where the fine-tuning of a killed run goes on.
    interactions, items, columns, time_unit, encoding: as for ``Reranker.fit``. Under ``accelerate launch`` each process
    works on a device of its own, they share the steps, and only the first one says and writes anything.

    Raises DataError where the data break a rule, leave too few lists, or where there is no encoder, StorageError where
    ``out`` cannot be written: before anything is read.
    """
    from llm_rerank.models.cross_encoder.training_plot import write_training_plot
    from llm_rerank.models.cross_encoder.training_settings import TrainingSettings

    out = Path(out)
    check_target(out / TUNED_MODEL)
    config = config or RerankerConfig()
    device, is_first = _place_of(_processes(config.device), config.device)
    config = replace(config, device=device)  # before anything is read: all of a process lies on one device
    settings = settings or TrainingSettings(steps=config.fine_tune_steps, precision=config.dtype, seed=config.seed)
    encoder = make_encoder(config)
    if encoder is None:
        raise DataError("encoder is None; the cross-encoder is built from one: name an encoder, for example 'default'")
    log, report = FitLog(verbose=verbose and is_first), DataReport()
    events, valid_items, users, _ = read_shop(
        config, interactions, items, None, None, columns, time_unit, report, encoding=encoding
    )
    data = within_retention(FitData(events, valid_items, users, None, UNREAD), config, report)
    events = data.events
    log.say_report(report)
    out.mkdir(parents=True, exist_ok=True)
    specs = specs_for(config, events, encoder, data.items.vectors)
    tools = FitTools(config, encoder, specs, PAIR_FEATURES, Renderer())
    data = replace(data, sentiment=sentiment_of(events, encoder))
    holdout = plan_holdout(events, config.seed, log)
    standing = stand_on_parts(HeldOutCases.of(data, tools, holdout), tools, log)
    tools = replace(tools, specs=standing.specs)
    lists = build_training_lists(data, tools, holdout, standing.components, standing.stage, log)
    model, tuning = tune_on_lists(lists, tools, settings, out / CHECKPOINT, log)
    if not is_first:
        return tuning
    model.fit(events, tools.render(valid_items, events, None), seed=config.seed)
    save_folder(out / TUNED_MODEL, model.save)
    write_json(
        out / LOG,
        {
            "settings": asdict(settings),
            "best_step": tuning.best_step,
            "n_lists": tuning.n_lists,
            "n_validation": tuning.n_validation,
            "interrupted": tuning.interrupted,
            "evaluations": tuning.log,
            "said": log.lines,
        },
    )
    write_training_plot(out / PLOT, tuning.log)
    encoder.flush()
    return tuning


def _processes(device: str) -> PartialState:
    """Ask accelerate which of how many processes this is; alone, where nothing launched several."""
    from accelerate import PartialState

    from llm_rerank.models.semantic.weights import settled

    return PartialState(cpu=settled(device, "auto")[0].startswith("cpu"))


def _place_of(processes: PartialState, device: str) -> tuple[str, bool]:
    """Device of this process, that given where it is the only one; and whether it is the first."""
    own = device if processes.num_processes == 1 else str(processes.device)
    return own, processes.is_main_process
