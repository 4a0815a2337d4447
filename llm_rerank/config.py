"""The settings of a reranker: few, frozen, each with its meaning and unit."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, Literal, get_args

from llm_rerank.types import DataError

THRESHOLD_RULES = ("probability", "f_beta", "recall", "precision", "expected_value", "risk")
RISKS = ("missed_target", "false_positives", "false_discovery")
MOST_RETENTION_DAYS = 100_000  # longer than there are dates
LEAST_GAIN, MOST_BETA = 1e-100, 1e6
"""Beyond these, products of floats are 0 or infinite."""

Part = Literal["auto", "always", "off"]
PART_CHOICES: tuple[Part, ...] = get_args(Part)

NumberFormat = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class ThresholdConfig:
    """A cut-off rule and its numbers; only those of the rule may be given.

    rule, with ``value``: "probability": keep where probability ≥ value; "f_beta": the cut with the best F-beta, value
    is beta; "recall": the highest cut that keeps at least the share ``value`` of retrieved targets; "precision": the
    lowest cut of which the share ``value`` is right, or, where there is none, the one of the highest share, with a
    warning, of the cuts that keep 30 candidates. The last three are estimates on held-out cases.
    "expected_value": keep where probability × take_rate × gain > cost; gain: of a hit; cost: of showing an item (same
    unit); take_rate: share of the lists shown from which the user takes something new, for a probability of lists that
    the library retrieves is given that they do.
    "risk": with probability 1 − delta over the held-out cases, the expected ``risk`` of a list is at most alpha.
    risk: "missed_target": 1 where none of a list's retrieved targets is kept; "false_positives": share of the list's
    candidates that are kept and no target; "false_discovery": share of the kept that are no target, of lists that keep
    any.
    """

    rule: Literal["probability", "f_beta", "recall", "precision", "expected_value", "risk"]
    value: float | None = None
    _: KW_ONLY
    gain: float = 1.0
    cost: float | None = None
    take_rate: float = 1.0
    risk: Literal["missed_target", "false_positives", "false_discovery"] = "missed_target"
    alpha: float = 0.1
    delta: float = 0.1

    def __post_init__(self) -> None:
        if self.rule not in THRESHOLD_RULES:
            raise DataError(f"threshold rule is {self.rule!r}; it must be one of {', '.join(THRESHOLD_RULES)}")
        numbers = {"expected_value": ("gain", "cost", "take_rate"), "risk": ("risk", "alpha", "delta")}
        own = numbers.get(self.rule, ("value",))
        for name, field in self.__dataclass_fields__.items():
            if name not in ("rule", *own) and getattr(self, name) != field.default:
                raise DataError(
                    f"threshold rule {self.rule!r} has {name} {getattr(self, name)!r}, which it does not read; "
                    f"give only {', '.join(own)}"
                )
        if self.rule == "risk" and self.risk not in RISKS:
            raise DataError(f"threshold risk is {self.risk!r}; it must be one of {', '.join(RISKS)}")
        for name in own:
            if name != "risk":
                self._check_number(name)
        if self.cost is not None and self.cost >= self.gain * self.take_rate:
            times = "" if self.take_rate == 1 else f" × take_rate {self.take_rate}"
            raise DataError(
                f"threshold rule 'expected_value' has gain {self.gain}{times} and cost {self.cost}: no probability "
                "makes the gain exceed the cost, so nothing could be kept; cost must be below gain"
            )

    def _check_number(self, name: str) -> None:
        number: Any = getattr(self, name)
        lies, words = {
            "alpha": (lambda x: 0 < x < 1, "strictly between 0 and 1, for example 0.1"),
            "delta": (lambda x: 0 < x < 1, "strictly between 0 and 1, for example 0.1"),
            "gain": (lambda x: x >= LEAST_GAIN, f"above 0 (at least {LEAST_GAIN:g}), the gain of a hit"),
            "cost": (lambda x: 0 <= x, "of at least 0 and below gain, the cost of showing an item"),
            "take_rate": (lambda x: 0 < x <= 1, "in (0, 1], the share of lists from which something new is taken"),
            "value": (lambda x: 0 < x <= 1, "in (0, 1]"),
        }[name]
        if self.rule == "f_beta":
            lies, words = lambda x: 0 < x <= MOST_BETA, f"above 0 and up to {MOST_BETA:g}, for example 1.0: it is beta"
        number_given = not isinstance(number, bool) and isinstance(number, Real) and math.isfinite(number)
        if not (number_given and lies(number)):
            raise DataError(f"threshold rule {self.rule!r} has {name} {number!r}; it must be a number {words}")
        if not isinstance(number, int | float):
            object.__setattr__(self, name, float(number))  # other numbers are no JSON


@dataclass(frozen=True)
class DiversityConfig:
    """How lists are kept from being ten of the same; the defaults change nothing.

    strength: 0…1, how much the similarity to what stands above counts against relevance (MMR): 0 not at all, 1 alone.
    max_per_group: most candidates of one group among the first ``depth``; None: no cap.
    group_by: "clusters" (k-means of the item vectors), or a column of items such as "brand" or "category".
    n_clusters: clusters of the catalogue; read with "clusters" only.
    exploration_slots: positions of the first ``depth`` that get random candidates, with logged propensities.
    exploration_seed: seed of that draw.
    depth: first ranks of a list that are diversified; more than are shown, so that others can come up.
    """

    strength: float = 0.0
    max_per_group: int | None = None
    group_by: str = "clusters"
    n_clusters: int = 50
    exploration_slots: int = 0
    exploration_seed: int = 0
    depth: int = 50

    def __post_init__(self) -> None:
        _check_strength(self.strength, "diversity strength")
        whole = {"n_clusters": 2, "exploration_slots": 0, "exploration_seed": 0, "depth": 1}
        if self.max_per_group is not None:
            whole["max_per_group"] = 1
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"diversity {name} is {value!r}; it must be a whole number of at least {least}")
        if self.exploration_slots > self.depth:
            raise DataError(
                f"diversity exploration_slots is {self.exploration_slots} and depth {self.depth}; there can be no more "
                "random slots than diversified ranks: lower exploration_slots or raise depth"
            )
        if not (isinstance(self.group_by, str) and self.group_by.strip()):
            raise DataError(f"diversity group_by is {self.group_by!r}; it must be 'clusters' or a column of items")

    @property
    def changes_ranks(self) -> bool:
        """Tell whether these settings do anything at all."""
        return self.strength > 0 or self.max_per_group is not None or self.exploration_slots > 0


def _check_strength(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{name} is {value!r}; it must be a number from 0 (relevance alone) to 1 (variety alone)")


@dataclass(frozen=True)
class RerankerConfig:
    """Settings of ``Reranker``. Every field has a default that works without tuning.

    encoder: folder or hub name of a sentence encoder; "default" is the embedded all-MiniLM-L6-v2; None: no encoder.
    cache_folder: folder where vectors and token states of texts, and the fine-tuning's checkpoint, are kept between
    fits; None: nothing is kept on disk.
    history_length: newest events of a user that the cross-encoder reads.
    candidates_per_source: items that each retriever adds to a user's candidates.
    sequence, vectors, semantic, cross_encoder: small nets over text and id; vectors that the items bring in columns
    whose names end in "_vector", all together; what the encoder's vectors say; a cross-encoder fine-tuned on the
    shop's data. Each "auto": fitted, and kept unless held-out users speak against it or are too few to tell (the
    cross-encoder: where it gains more than a standard error); "always": kept wherever it can be fitted
    (the nets up to 50,000 items, the cross-encoder with 50 lists to train on); "off". (Search phrases are read by their
    words in any case, if the fit saw any.)
    cross_encoder_depth: candidates of a user that the cross-encoder reads, best first; the others keep their order
    below. None: all.
    fine_tune_steps: most steps of the fine-tuning; it stops by itself where they no longer help.
    token_attention: the cross-encoder also reads the tokens of the history with each candidate. A pair takes 19 to 62
    times as long on a CPU, an item 13 times the memory, and the ablation found no gain (docs/lab-notebook.md).
    target_events: events that count as a positive; None: purchases if there are any, else all but views and searches.
    min_rating: a rated event below this is a dislike, no target and of negative weight; None: ratings do not make
    dislikes, and a fit says how many low ones count as liked.
    threshold: how ``kept`` is cut; None: ``kept`` is True for the first ``k``.
    min_items, max_items: bounds on the number of kept items of a user, applied after the cut: of too many kept ones
    those of the best ranks stay, to too few the best ranks of the others are added.
    diversity: 0…1, variety against relevance in the order of a list (MMR alone), or a ``DiversityConfig`` with caps and
    random slots; 0 changes nothing. How many of a list are kept does not depend on it, and which only where
    ``min_items`` or ``max_items`` change what the cut kept.
    refit: after the report, fit the components again on all rows.
    retention_days: events older than this are dropped from everything whenever the reranker is saved, and within a day
    by ``update``; None: all are kept.
    device: "auto", "cpu", "cuda", "cuda:1", "mps".
    dtype: "auto", "float32" or "bfloat16": what the encoder, the fine-tuning and the reader of ``token_attention``
    compute in; "auto": bfloat16 where the device is the faster for it (the reader on a GPU: float16).
    seed: seed of everything that is drawn at random.
    """

    encoder: str | None = "default"
    cache_folder: str | None = None
    history_length: int = 20
    candidates_per_source: int = 100
    sequence: Part = "auto"
    vectors: Part = "auto"
    semantic: Part = "auto"
    cross_encoder: Part = "auto"
    cross_encoder_depth: int | None = None
    fine_tune_steps: int = 300
    token_attention: bool = False
    target_events: tuple[str, ...] | None = None
    min_rating: float | None = None
    threshold: ThresholdConfig | None = None
    min_items: int = 0
    max_items: int | None = None
    diversity: float | DiversityConfig = 0.0
    refit: bool = True
    retention_days: float | None = None
    device: str = "auto"
    dtype: NumberFormat = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_kinds()
        whole = {"candidates_per_source": 1, "min_items": 0, "history_length": 1, "fine_tune_steps": 1, "seed": 0}
        for name in ("cross_encoder_depth", "max_items"):
            if getattr(self, name) is not None:
                whole[name] = 1
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if self.cache_folder is not None and not (isinstance(self.cache_folder, str) and self.cache_folder.strip()):
            raise DataError(f"cache_folder is {self.cache_folder!r}; it must be a folder's name as text, or None")
        self._check_choices()
        if self.max_items is not None and self.max_items < max(1, self.min_items):
            raise DataError(
                f"max_items is {self.max_items}; it must be at least 1 and at least min_items ({self.min_items})"
            )
        days = self.retention_days
        if days is not None and not (
            isinstance(days, int | float) and not isinstance(days, bool) and 0 < days < MOST_RETENTION_DAYS
        ):
            raise DataError(
                f"retention_days is {days!r}; it must be a number above 0 and below {MOST_RETENTION_DAYS:,}, or None"
            )
        if not isinstance(self.diversity, DiversityConfig):
            _check_strength(self.diversity, "diversity")

    def _check_kinds(self) -> None:
        """Refuse what would go wrong minutes later, in the middle of a fit."""
        kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
            "threshold": (ThresholdConfig, "a ThresholdConfig, for example ThresholdConfig('recall', 0.9), or None"),
            "encoder": (str, "a folder or hub name as text, or None"),
            "target_events": ((tuple, list), "a tuple of kinds of events, for example ('purchase',), or None"),
            "min_rating": (Real, "a number, or None"),
        }
        for name, (kind, words) in kinds.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise DataError(f"{name} is {value!r}; it must be {words}")
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise DataError(f"min_rating is {self.min_rating!r}; it must be a finite number, or None")
        for name in ("refit", "token_attention"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name} is {getattr(self, name)!r}; it must be True or False")

    def _check_choices(self) -> None:
        parts = ("sequence", "vectors", "semantic", "cross_encoder")
        choices: dict[str, tuple[str, ...]] = dict.fromkeys(parts, PART_CHOICES)
        for name, allowed in {**choices, "dtype": get_args(NumberFormat)}.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("semantic", "cross_encoder"):
            if self.encoder is None and getattr(self, name) == "always":
                raise DataError(f"{name} is 'always' and encoder None; it needs one: name an encoder, or say 'off'")

    @property
    def diversity_settings(self) -> DiversityConfig:
        """``diversity`` in full: a number is the strength of MMR."""
        return self.diversity if isinstance(self.diversity, DiversityConfig) else DiversityConfig(self.diversity)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        from dataclasses import asdict

        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RerankerConfig:
        """Rebuild settings from ``to_dict``'s values.

        Raises DataError where a name is unknown.
        """
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(values) - known)
        if unknown:
            raise DataError(f"settings have unknown names {unknown}; known: {sorted(known)}")
        values = dict(values)
        if values.get("threshold") is not None:
            values["threshold"] = ThresholdConfig(**values["threshold"])
        if isinstance(values.get("diversity"), dict):
            values["diversity"] = DiversityConfig(**values["diversity"])
        if values.get("target_events") is not None:
            values["target_events"] = tuple(values["target_events"])
        return cls(**values)
