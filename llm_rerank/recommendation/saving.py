"""A fitted reranker on disk: JSON, Parquet and safetensors inside a checked, crash-safe folder; never pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.data.features import PAIR_FEATURES, ItemStatistics
from llm_rerank.data.impressions import UNKNOWN_ITEMS
from llm_rerank.data.rendering import Renderer
from llm_rerank.folders import CROSS_ENCODER_FILE
from llm_rerank.recommendation.component_classes import check_saveable, library_class, loader
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.recommendation.impressions import Impressions
from llm_rerank.recommendation.residual import CROSS_ENCODER
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.stage import Stage, Start
from llm_rerank.recommendation.state import MARKS
from llm_rerank.recommendation.state import Saved as Saved
from llm_rerank.storage import (
    read_arrays,
    read_frame,
    read_json,
    read_strings,
    write_arrays,
    write_frame,
    write_json,
    write_strings,
)
from llm_rerank.types import (
    EVENT_ARRAYS,
    Interactions,
    Items,
    ObjectArray,
    StorageError,
    Users,
)

TEXT_ARRAYS = ("reviews", "queries")

CONFIG = (
    "config",
    "components",
    "stage",
    "upstream_stage",
    "report",
    "has_histories",
    "has_users",
    "target_events",
    "log_name",
    "log_position",
    "origin",
)
"""What a reranker's description must have; ``has_impressions`` and others came later."""


def write_reranker(folder: Path, saved: Saved) -> None:
    """Write into an existing empty folder; without histories neither events nor user ids are written.

    Raises StorageError for a component of one's own that cannot be saved, or an id that JSON cannot keep.
    """
    if not saved.has_histories:
        saved = saved.without_histories()
    fitted = saved.fitted
    described = []
    for component in fitted.components:
        own = type(component.scorer) is not library_class(component.name)
        if own:
            check_saveable(component)
        place = folder / "components" / component.name
        place.mkdir(parents=True)
        component.scorer.save(place)
        settings = dict(component.settings)
        described.append(
            {
                "name": component.name,
                "group": component.group,
                "retrieves": component.retrieves,
                "blends": component.blends,
                "settings": settings,
                **({"own": True} if own else {}),
            }
        )
    write_json(
        folder / "config.json",
        {
            "config": replace(saved.config, cache_folder=None).to_dict(),  # a place on this machine
            "components": described,
            "stage": fitted.stage.to_dict(),
            "upstream_stage": None if fitted.upstream_stage is None else fitted.upstream_stage.to_dict(),
            "fit_threshold": None if fitted.threshold is None else asdict(fitted.threshold),
            "report": fitted.report,
            "has_histories": saved.has_histories,
            "has_users": saved.users is not None,
            "has_impressions": saved.impressions is not None,
            "has_vectors": bool(fitted.items.vectors),
            "target_events": list(saved.target_events),
            "own_kinds": list(saved.own_kinds),
            "log_name": saved.log_name,
            "log_position": saved.log_position,
            "origin": saved.origin,
            "features": None if saved.features == PAIR_FEATURES else list(saved.features),
        },
    )
    write_arrays(folder / "reference.safetensors", {"items": fitted.reference})
    _write_ids(folder / "item_ids.parquet", fitted.items.ids)
    write_frame(folder / "items.parquet", _storable(fitted.items.frame))
    write_strings(folder / "item_texts.parquet", fitted.items.texts)
    if fitted.items.vectors:
        write_arrays(folder / "item_vectors.safetensors", fitted.items.vectors)
    if saved.users is not None:
        _write_ids(folder / "attribute_ids.parquet", saved.users.ids)
        write_frame(folder / "users.parquet", _storable(saved.users.frame))
    _write_events(folder, saved)
    if saved.impressions is not None:
        shown = saved.impressions.arrays()
        write_arrays(folder / "impressions.safetensors", shown, {UNKNOWN_ITEMS: saved.impressions.unknown_items})
        _write_ids(folder / "impression_user_ids.parquet", saved.impressions.user_ids)
    if saved.statistics is not None:
        write_arrays(folder / "statistics.safetensors", saved.statistics.to_arrays())
    saved.renderer.save(folder / "templates")


def read_reranker(folder: Path, specs: Sequence[ComponentSpec] = ()) -> Saved:
    """Read what ``write_reranker`` wrote; specs: of one's own components, whose code no folder can name.

    Raises StorageError where a part is missing, or a component is of no known kind.
    """
    values = _read_config(folder)
    config, stage, upstream_stage, asked = _rebuilt(folder, _settings, values)
    components = []
    for entry in values["components"]:
        scorer = loader(entry, specs)(folder / "components" / entry["name"])
        components.append(Component(scorer, entry["group"], entry["retrieves"], entry["blends"], entry["settings"]))
    ids = _read_ids(folder / "item_ids.parquet")
    frame = read_frame(folder / "items.parquet")
    frame["item_id"] = ids
    vectors = read_arrays(folder / "item_vectors.safetensors")[0] if values.get("has_vectors") else {}
    items = Items(ids, frame, read_strings(folder / "item_texts.parquet"), vectors)
    users = None
    if values["has_users"]:
        attribute_ids = _read_ids(folder / "attribute_ids.parquet")
        users = Users(attribute_ids, read_frame(folder / "users.parquet").assign(user_id=attribute_ids))
    events, marks = _read_events(folder)
    impressions = None
    if values.get("has_impressions", False):  # earlier folders have none
        shown, counted = read_arrays(folder / "impressions.safetensors")
        ids = _read_ids(folder / "impression_user_ids.parquet")
        impressions = Impressions(ids, **shown, unknown_items=counted.get(UNKNOWN_ITEMS))
    fitted = Fitted(
        items=items,
        components=tuple(components),
        reference=read_arrays(folder / "reference.safetensors")[0]["items"],
        stage=stage,
        upstream_stage=upstream_stage,
        threshold=asked,
        report=values["report"],
    )
    statistics = None
    if not values["has_histories"]:
        statistics = ItemStatistics.from_arrays(read_arrays(folder / "statistics.safetensors")[0], items)
    return Saved(
        config=config,
        fitted=fitted,
        events=events,
        users=users,
        renderer=Renderer(folder / "templates"),
        has_histories=values["has_histories"],
        target_events=tuple(values["target_events"]),
        own_kinds=tuple(values.get("own_kinds", ())),
        statistics=statistics,
        impressions=impressions,
        log_name=values["log_name"],
        log_position=values["log_position"],
        origin=values["origin"],
        features=PAIR_FEATURES if values.get("features") is None else tuple(values["features"]),
        **marks,
    )


def read_start(folder: Path) -> Start:
    """Read only what another shop lends: the stages, and where its cross-encoder lies."""
    values = _read_config(folder)
    weights = folder / "components" / CROSS_ENCODER
    stage, upstream_stage = _rebuilt(folder, _stages, values)
    return Start(
        stage=stage,
        upstream_stage=upstream_stage,
        cross_encoder=weights if weights.is_dir() else None,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """Read a reranker's description; StorageError where the folder is another thing, such as a cross-encoder alone."""
    path = folder / "config.json"
    if not path.exists():
        alone = (folder / CROSS_ENCODER_FILE).exists()
        found = ", a cross-encoder alone, which HistoryCrossEncoder.load reads" if alone else ""
        raise StorageError(
            f"{path} is missing: this is another model than a reranker{found}; give a folder that fit wrote"
        )
    values = read_json(path)
    absent = [name for name in CONFIG if name not in values] if isinstance(values, dict) else list(CONFIG)
    if absent:
        raise StorageError(f"{path} has no {absent[0]!r}: that is no reranker's; give a folder that fit wrote")
    return values


Read = TypeVar("Read")


def _rebuilt(folder: Path, build: Callable[[Mapping[str, Any]], Read], values: Mapping[str, Any]) -> Read:
    """Build what a description says; StorageError where it is of another version, whose fields differ."""
    try:
        return build(values)
    except (TypeError, KeyError, ValueError) as error:
        raise StorageError(
            f"{folder / 'config.json'} is of another version of llm_rerank ({type(error).__name__}: {error}); load it "
            "with the one that saved it, or fit and save again"
        ) from error


def _stages(values: Mapping[str, Any]) -> tuple[Stage, Stage | None]:
    upstream = values["upstream_stage"]
    return Stage.from_dict(values["stage"]), None if upstream is None else Stage.from_dict(upstream)


def _settings(values: Mapping[str, Any]) -> tuple[RerankerConfig, Stage, Stage | None, ThresholdConfig | None]:
    """Rebuild settings, both stages, and the threshold that the fit was asked for."""
    # in earlier folders the settings are the fit's
    asked = values.get("fit_threshold", values["config"].get("threshold"))
    threshold = None if asked is None else ThresholdConfig(**asked)
    return RerankerConfig.from_dict(values["config"]), *_stages(values), threshold


def _storable(frame: Any) -> Any:
    """Leave the ids out, which are kept apart with their types, and turn foreign objects into text."""
    plain = frame.drop(columns=[column for column in ("item_id", "user_id") if column in frame.columns]).copy()
    plain.columns = [str(column) for column in plain.columns]
    for column in plain.columns:
        if plain[column].dtype == object:
            plain[column] = [None if value is None or value != value else str(value) for value in plain[column]]
    return plain


def _write_ids(path: Path, ids: ObjectArray) -> None:
    """Write ids as JSON texts, so that 7 and "7" come back as what they were."""
    plain = [value.item() if isinstance(value, np.generic) else value for value in ids]
    foreign = [value for value in plain if not isinstance(value, str | int | float | bool)]
    if foreign:
        raise StorageError(
            f"id {foreign[0]!r} of type {type(foreign[0]).__name__} cannot be saved; use text or numbers as ids"
        )
    write_strings(path, [json.dumps(value) for value in plain])


def _read_ids(path: Path) -> ObjectArray:
    texts = read_strings(path)
    ids = np.empty(len(texts), dtype=object)
    ids[:] = [json.loads(text) for text in texts]
    return ids


def _write_events(folder: Path, saved: Saved) -> None:
    events = saved.events
    numbers = {name: getattr(events, name) for name in EVENT_ARRAYS if name not in TEXT_ARRAYS}
    numbers |= {"user_rows": events.user_rows, **{name: getattr(saved, name) for name in MARKS}}
    metadata: Mapping[str, Any] = {"n_items": events.n_items, "time_kind": events.time_kind}
    write_arrays(folder / "events.safetensors", numbers, metadata)
    for name in TEXT_ARRAYS:
        write_strings(folder / f"event_{name}.parquet", getattr(events, name))
    _write_ids(folder / "user_ids.parquet", events.user_ids)


def _read_events(folder: Path) -> tuple[Interactions, dict[str, Any]]:
    """Events, and what is kept beside each."""
    arrays, metadata = read_arrays(folder / "events.safetensors")
    texts: dict[str, Any] = {name: read_strings(folder / f"event_{name}.parquet") for name in TEXT_ARRAYS}
    marks = {name: arrays.pop(name) for name in MARKS}
    events = Interactions(
        user_ids=_read_ids(folder / "user_ids.parquet"),
        n_items=metadata["n_items"],
        time_kind=metadata["time_kind"],
        **arrays,
        **texts,
    )
    return events, marks
