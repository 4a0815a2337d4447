"""The settings of a reranker: few, frozen, each with its meaning and unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llm_rerank.types import DataError

THRESHOLD_RULES = ("probability", "f_beta", "recall")
CROSS_ENCODER_CHOICES = ("auto", "always", "off")


@dataclass(frozen=True)
class ThresholdConfig:
    """A cut-off rule and its one number.

    rule: "probability": keep where probability ≥ value; "f_beta": the cut with the best F-beta, value is beta;
    "recall": the highest cut that keeps at least the share ``value`` of retrieved targets.
    """

    rule: Literal["probability", "f_beta", "recall"]
    value: float

    def __post_init__(self) -> None:
        if self.rule not in THRESHOLD_RULES:
            raise DataError(f"threshold rule is {self.rule!r}; it must be one of {', '.join(THRESHOLD_RULES)}")
        if self.rule == "f_beta" and self.value <= 0:
            raise DataError(f"f_beta has beta {self.value}; beta must be above 0, for example 1.0")
        if self.rule != "f_beta" and not 0 < self.value <= 1:
            raise DataError(f"threshold rule {self.rule!r} has value {self.value}; it must lie in (0, 1]")


@dataclass(frozen=True)
class RerankerConfig:
    """Settings of ``Reranker``. Every field has a default that works without tuning.

    encoder: folder or hub name of a sentence encoder; "default" is the embedded all-MiniLM-L6-v2; None: no encoder.
    cache_folder: folder where vectors and token states of texts, and the fine-tuning's checkpoint, are kept between
    fits; None: nothing is kept on disk.
    history_length: newest events of a user that the cross-encoder reads.
    candidates_per_source: items that each retriever adds to a user's candidates.
    cross_encoder: "auto": fine-tuned, and kept where it pays on held-out users; "always": kept in any case; "off".
    cross_encoder_depth: candidates of a user that the cross-encoder reads, best first; the others keep their order
    below. None: all.
    fine_tune_steps: most steps of the fine-tuning; it stops by itself where they no longer help.
    target_events: events that count as a positive; None: purchases where there are any, else every event but views.
    min_rating: a rated event below this is a dislike; None: ratings do not make dislikes.
    threshold: how ``kept`` is cut; None: ``kept`` is True for the first ``k``.
    min_items, max_items: bounds on the number of kept items of a user, applied after the cut.
    refit: after the report, fit the components again on all rows.
    device: "auto", "cpu", "cuda", "cuda:1", "mps".
    seed: seed of everything that is drawn at random.
    """

    encoder: str | None = "default"
    cache_folder: str | None = None
    history_length: int = 20
    candidates_per_source: int = 100
    cross_encoder: Literal["auto", "always", "off"] = "auto"
    cross_encoder_depth: int | None = None
    fine_tune_steps: int = 300
    target_events: tuple[str, ...] | None = None
    min_rating: float | None = None
    threshold: ThresholdConfig | None = None
    min_items: int = 0
    max_items: int | None = None
    refit: bool = True
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"candidates_per_source": 1, "min_items": 0, "history_length": 1, "fine_tune_steps": 1}
        if self.cross_encoder_depth is not None:
            whole["cross_encoder_depth"] = 1
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if self.cache_folder is not None and not (isinstance(self.cache_folder, str) and self.cache_folder.strip()):
            raise DataError(f"cache_folder is {self.cache_folder!r}; it must be a folder's name as text, or None")
        if self.cross_encoder not in CROSS_ENCODER_CHOICES:
            raise DataError(
                f"cross_encoder is {self.cross_encoder!r}; it must be one of {', '.join(CROSS_ENCODER_CHOICES)}"
            )
        if self.max_items is not None and self.max_items < max(1, self.min_items):
            raise DataError(
                f"max_items is {self.max_items}; it must be at least 1 and at least min_items ({self.min_items})"
            )

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
        if values.get("target_events") is not None:
            values["target_events"] = tuple(values["target_events"])
        return cls(**values)
