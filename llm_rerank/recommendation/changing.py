"""A reranker after its fit: fresh events and items, users forgotten, old events dropped, all fitted again.

It holds one thing that changes, its whole state, which is replaced and never written into: ``copy.copy`` of a reranker
is a snapshot for another thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.item_statistics import DAY_S
from llm_rerank.data.times import TimeUnit, read_moment
from llm_rerank.models.semantic.weights import check_device
from llm_rerank.recommendation.asking import asked_ids
from llm_rerank.recommendation.exporting import exported
from llm_rerank.recommendation.learning import Learner, refit_shop
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.privacy import EVENT_LOG, ForgetReport, expired, forgotten
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.state import Saved
from llm_rerank.recommendation.updating import UpdateReport, updated
from llm_rerank.types import DataError, NotFittedError

Frame = Any  # a path, or a pandas, polars or Arrow frame


class ChangingReranker:
    """What ``Reranker`` is made with, and everything that changes its state once it is fitted or loaded.

    Raises DataError for a pair feature that is unknown, or a device that is not here.
    """

    def __init__(
        self,
        config: RerankerConfig | None = None,
        *,
        components: Sequence[ComponentSpec] | None = None,
        features: Sequence[str] = PAIR_FEATURES,
        verbose: bool = True,
    ) -> None:
        unknown = [name for name in features if name not in PAIR_FEATURES]
        if unknown:
            raise DataError(f"features names {unknown}; known pair features: {', '.join(PAIR_FEATURES)}")
        self.verbose = verbose
        self._specs = components
        self._features = tuple(features)
        self._saved: Saved | None = None
        self.config = config or RerankerConfig()

    @property
    def config(self) -> RerankerConfig:
        """Settings of the next answer, save or fit.

        They may be set after a fit: how lists are cut, bounded and varied, ``retention_days``. What the fit learned by
        (``encoder``, ``min_rating``, ``target_events``) changes with the next fit. Raises DataError where they are set
        to a device that is not here.
        """
        return self._config

    @config.setter
    def config(self, config: RerankerConfig) -> None:
        check_device(config.device)  # also where nothing that is fitted will ask for it
        self._config = config
        if self._saved is not None:
            self._change(self._saved.as_set(config))

    @classmethod
    def from_saved(
        cls, saved: Saved, *, components: Sequence[ComponentSpec] | None = None, verbose: bool = False
    ) -> Self:
        """Build a reranker from a whole state; components: as for ``load``."""
        reranker = cls(saved.config, components=components, verbose=verbose)
        reranker._adopt(saved)
        return reranker

    @property
    def saved(self) -> Saved:
        """The whole state, never changed in place; raises NotFittedError before ``fit`` or ``load``."""
        return self._data()

    def update(
        self,
        interactions: Frame | Sequence[Mapping[str, Any]] | None = None,
        items: Frame | Sequence[Mapping[str, Any]] | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        time_unit: TimeUnit = "auto",
        encoding: str | None = None,
    ) -> UpdateReport:
        """Take in fresh events and new or changed items without training; the next answer knows them.

        Arguments as for ``fit``, or sequences of mappings; see ``updating.py`` for what follows at once and what waits
        for ``refit``. A known item's missing cells keep what was known. Raises DataError where a rule is broken; then
        nothing is changed.
        """
        saved, report = updated(
            self._data(), interactions, items, columns=columns, time_unit=time_unit, encoding=encoding
        )
        self._change(expired(saved, slack_s=DAY_S)[0])
        return report

    def forget(self, user_ids: Sequence[Any], *, cache_folder: str | Path | None = None) -> ForgetReport:
        """Forget users: their events, attributes, and what was counted or quoted of them; see ``privacy.py``.

        cache_folder: of the fits, None: the settings'. Earlier saves are files of their own: save over them, and see
        ``folders.remove_leftovers`` for what could not go. The log of a folder that is served is not reached: there,
        ``LiveShop.forget`` or ``llm-rerank forget``.
        Unknown ids are reported. ``str()`` of the result says what was rewritten and what waits for ``refit``.
        """
        user_ids = asked_ids(user_ids, "user_ids")
        saved, report = forgotten(self._data(), user_ids, cache_folder or self.config.cache_folder)
        self._change(saved)
        return replace(report, not_reached=(*report.not_reached, EVENT_LOG)) if report.forgotten else report

    def expire(self, now: Any = None) -> ForgetReport:
        """Drop events older than ``retention_days`` of the settings before now, as ``save`` and ``update`` do.

        now: seconds since 1970 or a date; None: the clock. Raises DataError where times are positions.
        """
        saved, report = expired(self._data(), None if now is None else read_moment(now, "time", name="now"))
        self._change(saved)
        return report

    def export(self, user_id: Any) -> dict[str, Any]:
        """Return all that is held of a user, as JSON values; raises DataError where that is nothing."""
        return exported(self._data(), user_id)

    def refit(
        self,
        impressions: Frame | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        time_unit: TimeUnit = "auto",
        encoding: str | None = None,
    ) -> Self:
        """Fit everything again on the events and items of now, with the same settings and templates.

        impressions: upstream lists as for ``fit``, in the place of those that were kept; where none can be used, the
        stage for upstream lists stays, but loses its cut.
        """
        learner = Learner(self.config, self._specs, self._features, FitLog(verbose=self.verbose))
        self._saved = refit_shop(
            learner, self._data(), impressions, columns=columns, time_unit=time_unit, encoding=encoding
        )
        return self

    def _change(self, saved: Saved) -> None:
        if saved is not self._saved:
            self._saved = replace(saved, origin=uuid.uuid4().hex)

    def _adopt(self, saved: Saved) -> None:
        self._saved, self._features = saved, saved.features

    def _data(self) -> Saved:
        if self._saved is None:
            raise NotFittedError("this reranker is not fitted; call fit(interactions, items) or Reranker.load(folder)")
        return self._saved
