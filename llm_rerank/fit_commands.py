"""Commands of the command line that learn: fit a reranker, fine-tune the cross-encoder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_rerank.options import (
    CacheFolder,
    CandidatesPerSource,
    Columns,
    CrossEncoderChoice,
    CrossEncoderDepth,
    Device,
    DiversityOfFit,
    Encoder,
    Encoding,
    FineTuneSteps,
    HistoryLength,
    ImpressionsFile,
    InteractionsFile,
    ItemsFile,
    MinRating,
    Quiet,
    Seed,
    SemanticChoice,
    SequenceChoice,
    TargetEvents,
    Threshold,
    TimeUnitOption,
    TokenAttention,
    UsersFile,
    VectorsChoice,
    column_mapping,
    note,
    reranker_config,
    threshold_rule,
)

NumberFormat = Annotated[
    str, typer.Option("--dtype", help="What encoder and cross-encoder compute in: auto, float32 or bfloat16.")
]


def fit(
    interactions: InteractionsFile,
    items: ItemsFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to save the fitted reranker to.")],
    users: UsersFile = None,
    impressions: ImpressionsFile = None,
    column: Columns = None,
    time_unit: TimeUnitOption = "auto",
    encoding: Encoding = None,
    start_from: Annotated[Path | None, typer.Option("--start-from", help="Folder of another shop's reranker.")] = None,
    encoder: Encoder = "default",
    cache_folder: CacheFolder = None,
    target_event: TargetEvents = None,
    min_rating: MinRating = None,
    threshold: Threshold = None,
    min_items: Annotated[int, typer.Option("--min-items", help="Least number of kept items of a user.")] = 0,
    max_items: Annotated[int | None, typer.Option("--max-items", help="Greatest number of kept items.")] = None,
    diversity: DiversityOfFit = None,
    candidates_per_source: CandidatesPerSource = 100,
    sequence: SequenceChoice = "auto",
    vectors: VectorsChoice = "auto",
    semantic: SemanticChoice = "auto",
    cross_encoder: CrossEncoderChoice = "auto",
    cross_encoder_depth: CrossEncoderDepth = None,
    history_length: HistoryLength = 20,
    fine_tune_steps: FineTuneSteps = 300,
    token_attention: TokenAttention = False,
    refit: Annotated[bool, typer.Option("--refit/--no-refit", help="Fit again on all rows after the report.")] = True,
    retention_days: Annotated[
        float | None,
        typer.Option("--retention-days", help="Drop events older than this, now and whenever it is saved."),
    ] = None,
    device: Device = "auto",
    dtype: NumberFormat = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    r"""Fit on your events and items, save to a folder.

    It holds out some events, learns from the rest, says how good it is on what it held out and why it decided as it
    did, then fits again on everything. An earlier model in the folder stays until the new one is whole.

    \b
    llm-rerank fit orders.csv items.csv --out shop
    llm-rerank fit log.parquet products.jsonl --out shop --column customer=user_id --column sku=item_id
    """
    from llm_rerank.folders import check_target
    from llm_rerank.recommendation.reranker import Reranker

    check_target(out)
    config = reranker_config(
        encoder=encoder,
        cache_folder=cache_folder,
        target_events=target_event,
        min_rating=min_rating,
        threshold=threshold_rule(threshold),
        min_items=min_items,
        max_items=max_items,
        diversity=diversity,
        candidates_per_source=candidates_per_source,
        sequence=sequence,
        vectors=vectors,
        semantic=semantic,
        cross_encoder=cross_encoder,
        cross_encoder_depth=cross_encoder_depth,
        history_length=history_length,
        fine_tune_steps=fine_tune_steps,
        token_attention=token_attention,
        refit=refit,
        retention_days=retention_days,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    reranker = Reranker(config, verbose=not quiet).fit(
        interactions,
        items,
        users=users,
        impressions=impressions,
        columns=column_mapping(column),
        time_unit=time_unit,  # type: ignore[arg-type]  # the library checks it and names the choices
        encoding=encoding,
        start_from=start_from,
    )
    reranker.save(out)
    note(f"saved to {out}", quiet)


def finetune(
    interactions: Annotated[Path, typer.Option("--interactions", help="Events: user_id, item_id, timestamp, …")],
    items: Annotated[Path, typer.Option("--items", help="Catalogue: item_id, title, optional description, …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model, its log and its picture.")],
    column: Columns = None,
    time_unit: TimeUnitOption = "auto",
    encoding: Encoding = None,
    encoder: Encoder = "default",
    cache_folder: CacheFolder = None,
    target_event: TargetEvents = None,
    min_rating: MinRating = None,
    history_length: HistoryLength = 20,
    fine_tune_steps: FineTuneSteps = 300,
    token_attention: TokenAttention = False,
    device: Device = "auto",
    dtype: NumberFormat = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    r"""Fine-tune the cross-encoder alone on your events and items, to predict with in Python.

    It learns what the other components leave unexplained, stops where that no longer helps, and says what it gained. If
    it is killed, the same command with the same --out fits the other components again and goes on with the fine-tuning
    from its last checkpoint, at most half a minute old; Ctrl-C keeps the best so far. Under `accelerate launch` the
    processes share its steps, and the first one writes.

    \b
    llm-rerank finetune --interactions orders.csv --items items.csv --out tuned
    """
    from llm_rerank.folders import TUNED_MODEL
    from llm_rerank.recommendation.fine_tuning import fine_tune_on_shop

    config = reranker_config(
        encoder=encoder,
        cache_folder=cache_folder,
        target_events=target_event,
        min_rating=min_rating,
        history_length=history_length,
        fine_tune_steps=fine_tune_steps,
        token_attention=token_attention,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    fine_tune_on_shop(
        interactions,
        items,
        out,
        config=config,
        columns=column_mapping(column),
        time_unit=time_unit,  # type: ignore[arg-type]  # the library checks it and names the choices
        encoding=encoding,
        verbose=not quiet,
    )
    note(f"saved to {out}; in Python, HistoryCrossEncoder.load({str(out / TUNED_MODEL)!r}) reads the model", quiet)
