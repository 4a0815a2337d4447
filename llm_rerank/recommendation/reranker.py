"""The façade: fit on a shop's frames or files, rerank candidates, recommend, explain, save and load.

It translates between frames and arrays; what is decided is decided in ``fitting.py`` and ``stage.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from llm_rerank.data.candidates import validate_candidates
from llm_rerank.data.frames import applicable, like_input, open_tables
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.times import TimeUnit, read_moment
from llm_rerank.data.values import object_array
from llm_rerank.folders import check_target, open_folder, save_folder
from llm_rerank.recommendation.asking import DATA, asked_ids, asked_moments, data_facts, listed_ids, note_unknown_users
from llm_rerank.recommendation.changing import ChangingReranker, Frame
from llm_rerank.recommendation.comparing import Comparison, compare_results
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.deciding import Decided, batches, decide, joined, result_frame
from llm_rerank.recommendation.decision_facts import (
    DECISION,
    decision_facts,
    not_retrieved_here,
    retrieved_otherwise,
    warn_where_scores_do_not_count,
)
from llm_rerank.recommendation.explanation import Explanation, codes_to_explain, explain_item
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.recommendation.histories import cases_of_users, history_frame, last_time, read_later_events
from llm_rerank.recommendation.learning import Learner, fit_shop
from llm_rerank.recommendation.log import FitLog, FitReport
from llm_rerank.recommendation.phrases import phrase_effects
from llm_rerank.recommendation.privacy import expired
from llm_rerank.recommendation.questions import check_settings
from llm_rerank.recommendation.saving import read_reranker, write_reranker
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.upstream import upstream_of_both
from llm_rerank.types import UNKNOWN, Cases, DataError, DataReport, IntArray, Interactions, Ragged


class Reranker(ChangingReranker):
    """Reads what items say and what users did, and reorders candidates; see ``fit``, ``rerank``, ``recommend``.

    config: settings. components: specs to use instead of ``default_specs``, such as scorers of one's own; no file keeps
    them, so that a refit after ``load`` takes the default ones unless they are given there again. features: the pair
    features allowed, a part of ``PAIR_FEATURES``; kept with the model. verbose: print what ``fit`` plans and decides.
    """

    # ------------------------------------------------------------------ fit

    def fit(
        self,
        interactions: Frame,
        items: Frame,
        *,
        users: Frame | None = None,
        impressions: Frame | None = None,
        columns: Mapping[str, str] | None = None,
        time_unit: TimeUnit = "auto",
        encoding: str | None = None,
        start_from: str | Path | None = None,
    ) -> Self:
        """Fit everything on a shop's events and items; prints its plan, its estimate of time and what it decided.

        interactions, items, users, impressions: frames or paths, columns as in the data contract (README). columns:
        the shop's column names to ours. time_unit: "auto", "s", "ms", "us", "ns", "datetime" or "position". encoding:
        of the files, None to find it.
        start_from: folder of another shop's saved reranker. The new blend is shrunk toward its blend, as far as that
        ranks held-out users well; its cross-encoder is fine-tuned further, or used as it is where there is too little
        to learn from.

        Raises DataError where the data break a rule, StorageError where ``start_from`` cannot be read.
        """
        tables = {"interactions": interactions, "items": items, "users": users, "impressions": impressions}
        learner = Learner(self.config, self._specs, self._features, FitLog(verbose=self.verbose))
        self._adopt(
            fit_shop(learner, tables, columns=columns, time_unit=time_unit, encoding=encoding, start_from=start_from)
        )
        return self

    @property
    def components(self) -> tuple[Component, ...]:
        """Fitted scorers with the settings chosen for each; raises NotFittedError before ``fit`` or ``load``."""
        return self._fit_result().components

    def report(self) -> FitReport:
        """Return what the fit decided and measured; ``str()`` gives its lines."""
        return FitReport(self._fit_result().report)

    # ------------------------------------------------------------- use

    def rerank(
        self,
        candidates: Frame,
        *,
        histories: Frame | None = None,
        at: Any = None,
        k: int | None = None,
        on_unknown: Literal["keep", "drop", "raise"] = "keep",
        columns: Mapping[str, str] | None = None,
        encoding: str | None = None,
    ) -> Any:
        """Put each user's candidates in order; many users at once.

        candidates: user_id, item_id, optional upstream_score (with any, and impressions at the fit, the whole batch is
        decided as lists of that recommender; without impressions it counts for nothing, which a warning says); further
        columns pass through. histories: interactions
        that stand for the history of the users in them. at: the moment of the decision, a date, seconds or a position
        (default: after the last known event that is not dated ahead of the clock), or a mapping of user ids to such
        moments, where lists were decided at different times; users that it lacks get the default, and it must have one
        of them. k: rows a user to return (default: all). on_unknown: what to do with candidates absent from the
        catalogue: keep them last with score NaN, drop them, or raise. columns: the shop's column names to ours, of both
        tables. encoding: of the files, None to find it.

        Returns the kind of frame given: user_id, item_id, rank (from 1), score, probability, kept, score_<group>
        (which add up to score), upstream_score, then the columns passed through; users in order of appearance, best
        rank first, ties in input order. ``attrs["decision"]`` of a pandas frame says how the batch was cut, whether the
        guarantee holds for it, and whether it drifted (``decision_facts``); a drifted batch that is cut gives a
        DriftWarning. Rows of either table that cannot be used are left out, with a DroppedRowsWarning that counts them
        by reason; ``attrs["data"]`` has the counts, how tables were read, and how many users have no history here.
        Raises DataError where the frame breaks a rule, NotFittedError before ``fit`` or ``load``.
        """
        fitted = self._fit_result()
        check_settings(k, None, None)
        report = DataReport()
        given = {"candidates": candidates, "histories": histories}
        tables = open_tables(given, columns, encoding, report, required=("candidates",))
        frame = tables["candidates"]
        table = validate_candidates(
            frame, fitted.items, on_unknown=on_unknown, columns=applicable(columns, frame), report=report
        )
        row_users, user_ids = pd.factorize(pd.Series(table.user_ids, dtype=object), use_na_sentinel=False)
        order = np.argsort(row_users, kind="stable")
        lengths = np.bincount(row_users, minlength=len(user_ids)).astype(np.int64)
        events = self._given(tables.get("histories"), columns=columns, report=report)
        cases, seen = self._cases(list(user_ids), events, at)
        note_unknown_users(list(user_ids), cases, (self._data().events, events), report)
        cases = cases.with_candidates(Ragged.from_lengths(table.item_codes[order], lengths))
        upstream = table.upstream_scores[order]
        known = None if np.isnan(upstream).all() else upstream
        decided = self._decide(cases, seen, user_ids=list(user_ids), upstream=known)
        passed = table.frame.iloc[order].reset_index(drop=True)
        result = result_frame(passed, decided, fitted, k)
        # the cut of the fit's own lists says nothing of another recommender's
        other = not_retrieved_here(decided.stage, fitted, known, decided.candidates)
        warn_where_scores_do_not_count(known, fitted)
        result.attrs[DECISION] = decision_facts(decided, cases, self.config, k, other_lists=other)
        result.attrs[DATA] = data_facts(report)
        return like_input(result, candidates)

    def recommend(
        self,
        user_ids: Sequence[Any] | None = None,
        *,
        histories: Frame | None = None,
        at: Any = None,
        k: int | None = 10,
        exclude_seen: bool = True,
        columns: Mapping[str, str] | None = None,
        encoding: str | None = None,
    ) -> Any:
        """Retrieve candidates and return each user's best k.

        user_ids: None takes every known user, or those in ``histories``. A user known to neither gets the list of a
        newcomer. k: None returns every retrieved candidate. exclude_seen: leave out what the user has had. Other
        arguments and the result as in ``rerank``.
        """
        fitted = self._fit_result()
        check_settings(k, None, None)
        report = DataReport()
        tables = open_tables({"histories": histories}, columns, encoding, report)
        given = self._given(tables.get("histories"), columns=columns, report=report)
        if user_ids is None:
            user_ids = list(self._data().events.user_ids if given is None else given.user_ids)
        user_ids = asked_ids(user_ids, "user_ids")
        cases, seen = self._cases(user_ids, given, at)
        note_unknown_users(user_ids, cases, (self._data().events, given), report)
        per_source = max(self.config.candidates_per_source, k or 0)
        users, frames, parts = object_array(user_ids), [], []
        for rows in batches(len(cases), len(fitted.items)):  # of all users only what is returned is held together
            had = seen.take(rows)
            excluded = had if exclude_seen else None
            part = self._decide(
                cases.take(rows), had, user_ids=users[rows], candidates_per_source=per_source, exclude=excluded
            )
            passed = pd.DataFrame(
                {
                    "user_id": pd.Series(users[rows][part.candidates.row_of_value], dtype=object),
                    "item_id": pd.Series(fitted.items.ids[part.candidates.values], dtype=object),
                }
            )
            frames.append(result_frame(passed, part, fitted, k))
            parts.append(joined([part]))
        decided = joined(parts)
        result = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
        for name in ("user_id", "item_id"):
            result[name] = result[name].infer_objects()
        other = retrieved_otherwise(exclude_seen, per_source, self.config.candidates_per_source)
        result.attrs[DECISION] = decision_facts(decided, cases, self.config, k, other_lists=other)
        result.attrs[DATA] = data_facts(report)
        return result if histories is None else like_input(result, histories)

    def explain(
        self,
        user_id: Any,
        item_id: Any,
        *,
        history: Frame | Sequence[Any] | np.ndarray | pd.Series | pd.Index | None = None,
        at: Any = None,
        versus: Any = None,
        phrases: bool = False,
        upstream_score: float | None = None,
        versus_upstream_score: float | None = None,
    ) -> Explanation:
        """Explain one item's score for one user: contributions that add up exactly, and each history item's effect.

        history: interactions as a frame, or item ids oldest first (a list, an array, a Series); None: what is known of
        the user. versus: id of another item; also why the one stands above or below the other. phrases: also the words
        of the item that mattered, which reads up to 24 shortened texts. upstream_score, versus_upstream_score: what the
        upstream recommender said of the two, NaN where it said nothing: with it, and impressions at the fit, the score
        explained is the one that ``rerank`` gives lists with upstream scores; where an item stands in the list does not
        matter.
        Raises DataError where an item, or every item of ``history``, is not in the catalogue, or ``history`` has no row
        of the user, StorageError where phrases need an encoder that cannot be loaded.
        """
        fitted = self._fit_result()
        asked_ids([user_id], "user_id")
        asked_ids([item_id, versus], "item_id")
        code, *others = codes_to_explain(fitted.items, item_id, versus)
        other = others[0] if others else None
        upstream = upstream_of_both(upstream_score, versus_upstream_score, other is not None)
        report = DataReport()
        ids = listed_ids(history)
        if ids is not None:
            moment = asked_moments(at, [user_id])[0] if isinstance(at, Mapping) else at
            listed = history_frame(user_id, ids, self._moment(None, moment))
            given = self._given(listed, time_unit="s", report=report)
            if given is not None and not len(given):
                raise DataError(
                    f"history names no item of the catalogue (first: {ids[0]!r}); give ids of items, or leave it "
                    "out to explain with what is known of the user"
                )
        else:
            given = self._given(history, report=report)
            if given is not None and code_of(user_id, codes_by_id(given.user_ids)) == UNKNOWN:
                raise DataError(
                    f"history has no usable row of user {user_id!r}; give that user's interactions, or leave it out to "
                    "explain with what is known of the user"
                )
        data_facts(report)
        cases, seen = self._cases([user_id], given, at)
        cases = cases.with_candidates(Ragged.from_lists([[code]]))
        explanation = explain_item(user_id, fitted, cases, seen, self._decide, other=other, upstream=upstream)
        if not phrases:
            return explanation
        words = phrase_effects(fitted, cases, self._data().item_statistics, None if upstream is None else upstream[:1])
        return replace(explanation, phrases=words)

    def compare(self, before: Frame, after: Frame) -> Comparison:
        """Say what a rerank moved, how far and why.

        before: a result of ``rerank`` or ``recommend``, or a bare list: user_id, item_id, and rank or upstream_score.
        after: a result. Returns a ``Comparison``: a frame a user and item, numbers, text and HTML.
        Raises DataError where a column is missing or a rank is none.
        """
        return compare_results(before, after, self._fit_result().items)

    # -------------------------------------------------------------- disk

    def save(self, folder: str | Path, *, histories: bool = True) -> None:
        """Save to a folder, crash-safe: a save that is killed leaves the folder as it was.

        histories: False leaves every user's events out; what is kept of them is each item's sales, ratings and
        sentiment by date, and the newest reviews that its text quotes, word for word, without a name. The loaded
        reranker then needs ``histories`` with each question, or treats the user as new.
        Events beyond ``retention_days`` are dropped first. Raises StorageError where the folder cannot be one of ours,
        DataError where there are ``retention_days`` and times are positions.
        """
        self._saved = saved = expired(self._data())[0]
        if not histories and saved.has_histories:
            saved = saved.without_histories()
        target = Path(folder)
        check_target(target)
        save_folder(target, lambda place: write_reranker(place, saved))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        components: Sequence[ComponentSpec] | None = None,
        device: str = "auto",
        verbose: bool = True,
    ) -> Self:
        """Load what ``save`` wrote.

        components: specs of the fit; needed where scorers of one's own are among them, and for a refit with them.
        Raises StorageError, naming the file or the component, DataError where there is no such device.
        """
        saved = read_reranker(open_folder(Path(folder)), components or ())
        reranker = cls(replace(saved.config, device=device), components=components, verbose=verbose)
        reranker._adopt(replace(saved, config=reranker.config))
        return reranker

    # ------------------------------------------------------------ inside

    def _fit_result(self) -> Fitted:
        return self._data().fitted

    def _given(
        self,
        histories: Frame | None,
        time_unit: TimeUnit = "auto",
        *,
        columns: Mapping[str, str] | None = None,
        report: DataReport,
    ) -> Interactions | None:
        if histories is None:
            return None
        return read_later_events(histories, self._data(), time_unit, name="histories", columns=columns, report=report)

    def _cases(self, user_ids: list[Any], given: Interactions | None, at: Any) -> tuple[Cases, Ragged]:
        times: int | IntArray
        if isinstance(at, Mapping):
            usual = self._moment(given, None)
            moments = asked_moments(at, user_ids)
            times = np.array([usual if m is None else self._moment(given, m) for m in moments], dtype=np.int64)
        else:
            times = self._moment(given, at)
        return cases_of_users(object_array(user_ids), self._data().events, times, given=given)

    def _moment(self, given: Interactions | None, at: Any) -> int:
        """Time of the decision: as asked, or just after the last event that is known (``last_time``)."""
        saved = self._data()
        if at is not None:
            return read_moment(at, saved.events.time_kind)
        return last_time(saved.events, given, statistics=saved.statistics) + 1

    def _decide(self, cases: Cases, seen: Ragged, **asked: Any) -> Decided:
        return decide(self._fit_result(), self.config, cases, seen, self._data().item_statistics, **asked)
