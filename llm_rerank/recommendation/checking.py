"""A look at a shop's files before any fit: what was understood, what would be dropped, what is missing, how long.

Reads, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.config import RerankerConfig
from llm_rerank.data.frames import applicable, open_tables
from llm_rerank.data.layouts import as_interactions, as_items
from llm_rerank.data.times import TimeUnit
from llm_rerank.data.vectors import is_vector_column
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.recommendation.estimate import estimate_fit_seconds, sample_of_texts, seconds_in_words
from llm_rerank.recommendation.holdout import Holdout, plan_holdout
from llm_rerank.recommendation.inputs import FitData
from llm_rerank.recommendation.judging import few_held_out
from llm_rerank.recommendation.learning import UNREAD, within_retention
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.specs import specs_for
from llm_rerank.recommendation.upstream import usable_lists
from llm_rerank.types import DataReport, Interactions, Items

MOST_UNKNOWN_SHARE = 0.2
MULTILINGUAL_ENCODER = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"

READ_COLUMNS = {
    "interactions": ("user_id", "item_id", "timestamp", "event", "rating", "quantity", "weight", "review", "query"),
    "items": ("item_id", "title", "description", "brand", "categories", "price", "specs", "image"),
    "users": ("user_id",),
    "impressions": ("user_id", "item_id", "timestamp", "upstream_score", "list_id"),
}

WITHOUT = {
    ("interactions", "event"): "views, carts and purchases cannot be told apart: every row counts as one kind of event",
    ("interactions", "rating"): "no event can be a dislike, and items have no mean rating",
    ("interactions", "review"): "items have no review digest and no sentiment",
    ("items", "description"): "an item's text is its title and what else there is",
    ("items", "brand"): "no brand affinity",
    ("items", "categories"): "no category affinity",
    ("items", "price"): "no price gap",
    ("impressions", "upstream_score"): "the lists count, their scores do not",
}
"""What is lost where an optional column is absent."""


@dataclass(frozen=True)
class ShopCheck:
    """What a look at a shop's files found. Everything is JSON-ready.

    tables: columns of each table and what becomes of them. understood: how values were read. dropped: rows by reason.
    missing: what is absent or thin, and what that costs. counts: rows, users, items and so on. unknown_share: of the
    tokens of the items' texts that the encoder cannot read, NaN without text or encoder. fit_seconds: estimate.
    has_encoder: False where the settings name none, so that no token was counted.
    """

    tables: Sequence[str]
    understood: Sequence[str]
    dropped: Mapping[str, int]
    missing: Sequence[str]
    counts: Mapping[str, int]
    protocol: str
    unknown_share: float
    fit_seconds: float
    advice: Sequence[str] = field(default_factory=list)
    has_encoder: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        share = "no text to read" if self.has_encoder else "not counted: no encoder"
        if not np.isnan(self.unknown_share):
            share = f"{self.unknown_share:.1%} unknown to the encoder"
        sections = {
            "columns": self.tables,
            "understood": self.understood,
            "would be dropped": [f"{count:,} rows: {reason}" for reason, count in self.dropped.items()] or ["nothing"],
            "missing": self.missing or ["nothing"],
            "left to learn from": [f"{count:,} {name}" for name, count in self.counts.items()],
            "how fit would judge itself": [self.protocol],
            "text": [f"tokens of the items' texts: {share}"],
            "time": [f"fit would take about {seconds_in_words(self.fit_seconds)} on this machine"],
            "advice": self.advice or ["none: fit can start"],
        }
        return "\n".join(f"{name}\n" + "\n".join(f"  {line}" for line in lines) for name, lines in sections.items())


def check_shop(
    interactions: Any,
    items: Any,
    *,
    users: Any | None = None,
    impressions: Any | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    encoding: str | None = None,
    config: RerankerConfig | None = None,
) -> ShopCheck:
    """Look at a shop's tables (frames or paths) as ``Reranker.fit`` would, without fitting; arguments as there.

    Raises DataError where ``fit`` would.
    """
    config, report = config or RerankerConfig(), DataReport()
    given = {"interactions": interactions, "items": items, "users": users, "impressions": impressions}
    tables = open_tables(given, columns, encoding, report, required=("interactions", "items"))
    ours = {name: _our_columns(name, table, columns) for name, table in tables.items()}
    events, valid_items, known_users, shown = read_shop(
        config,
        tables["interactions"],
        tables["items"],
        tables.get("users"),
        tables.get("impressions"),
        columns,
        time_unit,
        report,
    )
    kept = within_retention(FitData(events, valid_items, known_users, shown, UNREAD), config, report)
    events, holdout = kept.events, plan_holdout(kept.events, config.seed, FitLog(verbose=False))
    missing = [
        f"{table} has no {column}: {loss}"
        for (table, column), loss in WITHOUT.items()
        if table in ours and column not in ours[table].values()
    ]
    unknown_share, encoder = float("nan"), None
    if config.encoder is not None:
        encoder = SentenceEncoder(config.encoder, device=config.device, dtype=config.dtype)
        unknown_share = encoder.unknown_share(sample_of_texts(events, valid_items))
    return ShopCheck(
        tables=[_described(name, tables[name], ours[name]) for name in tables],
        understood=report.notes,
        dropped=report.dropped,
        missing=missing + _thin_data(events, valid_items),
        counts=_counts(events, valid_items),
        protocol=holdout.description,
        unknown_share=unknown_share,
        fit_seconds=estimate_fit_seconds(
            events,
            valid_items,
            specs_for(config, events, encoder, valid_items.vectors),
            encoder,
            refit=config.refit,
            fine_tune_steps=0 if encoder is None or config.cross_encoder == "off" else config.fine_tune_steps,
            seed=config.seed,
        ),
        advice=report.advice + _advice(kept, holdout, unknown_share, config),
        has_encoder=encoder is not None,
    )


def _our_columns(name: str, table: pd.DataFrame, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Our name of each of a table's columns, as ``fit`` would see them; of a published layout its columns in ours."""
    mapping = applicable(columns, table)
    ours = {str(column): mapping.get(column, str(column)) for column in table.columns}
    named = table
    if name == "interactions":
        named = as_interactions(table, DataReport(), mapping)
    elif name == "items":
        named = as_items(table, DataReport(), mapping)
    own = [str(column) for column in named.columns]
    return ours if set(own) == set(ours.values()) else dict(zip(own, own, strict=True))


def _described(name: str, table: pd.DataFrame, ours: Mapping[str, str]) -> str:
    known = {own for own in ours.values() if own in READ_COLUMNS[name] or name == "items" and is_vector_column(own)}
    read = [column if column == own else f"{column} → {own}" for column, own in ours.items() if own in known]
    rest = [column for column, own in ours.items() if own not in known]
    kept = {"items": "joined to the text or passed through", "users": "attributes"}.get(name, "not read")
    return f"{name}: {len(table):,} rows; read: {', '.join(read)}" + (f"; {kept}: {', '.join(rest)}" if rest else "")


def _counts(events: Interactions, items: Items) -> dict[str, int]:
    return {
        "events": len(events),
        "events that are targets": int(events.positive.sum()),
        "users": len(np.unique(events.users)),
        "items": len(items),
        "items with an event": len(np.unique(events.items[events.items >= 0])),
        "events with a review": int(events.reviews.astype(bool).sum()),
        "searches": int(events.queries.astype(bool).sum()),
    }


def _thin_data(events: Interactions, items: Items) -> list[str]:
    """Say where there is little to learn from."""
    targets_of_user = np.bincount(events.users[events.positive], minlength=events.n_users)
    targets_of_item = np.bincount(events.items[events.positive], minlength=len(items))
    titles = items.frame["title"].to_numpy(dtype=object).astype(str)
    titles = titles[titles != ""]  # those without are told already, and may have a description
    n_same = len(titles) - len(set(titles))
    findings = [
        (int((targets_of_user < 2).sum()), events.n_users, "users have fewer than two targets: nothing to learn from"),
        (int((targets_of_item == 0).sum()), len(items), "items were never a target: only their text speaks for them"),
        (n_same, len(items), "items share their title with another: the text cannot tell them apart"),
    ]
    return [f"{count:,} of {total:,} {what}" for count, total, what in findings if count]


def _advice(data: FitData, holdout: Holdout, unknown_share: float, config: RerankerConfig) -> list[str]:
    few = few_held_out(len(holdout.targets))
    found = [few] if few else []
    if data.impressions is not None:
        lists = usable_lists(data.impressions, data.events, holdout)
        found += [f"{lists}; they would not be used"] if isinstance(lists, str) else []
    if not unknown_share > MOST_UNKNOWN_SHARE:
        return found
    return [
        *found,
        f"the encoder {config.encoder!r} cannot read {unknown_share:.0%} of the text; use a multilingual one, such as "
        f"{MULTILINGUAL_ENCODER} (encoder={MULTILINGUAL_ENCODER!r}, or --encoder on the command line; it is downloaded "
        "once). Character n-grams read every script meanwhile",
    ]
