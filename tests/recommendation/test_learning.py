"""A fit again on what is known by then: the same protocol, settings and templates, and what it cannot learn anew."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.recommendation.learning import LENT_UPSTREAM, Learner, refit_shop
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.updating import updated
from llm_rerank.types import DataError
from tests.planted import cases_of
from tests.recommendation.test_updating import event, scorer

SPECS = [ComponentSpec("item_knn", "collaborative", ItemKNN)]


@pytest.fixture(scope="module")
def saved(shop):
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30)
    return Reranker(config, components=SPECS, verbose=False).fit(*shop).saved


def again(saved, impressions=None, **changes):
    learner = Learner(replace(saved.config, **changes), SPECS, PAIR_FEATURES, FitLog(verbose=False))
    return refit_shop(learner, saved, impressions, columns=None, time_unit="auto")


def test_it_learns_from_everything_and_keeps_the_rest(saved, shop):
    item = shop[1]["item_id"][0]
    saved = replace(saved, log_name="log", log_position=7)
    fresh, _ = updated(saved, [event("u0", item, review="a zebra of a thing")], [{"item_id": "n", "title": "easel"}])
    assert "zebra" not in fresh.fitted.items.texts[0]
    fitted = again(fresh)
    assert fitted.in_fit.all()
    assert not fitted.torn.any()
    assert "zebra" in fitted.fitted.items.texts[0]
    assert len(fitted.fitted.items) == len(saved.fitted.items) + 1
    assert (fitted.log_name, fitted.log_position, fitted.target_events) == ("log", 7, ("purchase",))
    assert fitted.renderer is fresh.renderer
    assert "refit: the whole fit again on the " in fitted.fitted.report["lines"][0]
    cases = cases_of([[code] for code in range(30)], [[]] * 30)
    anew = ItemKNN().fit(fresh.events, fitted.fitted.items).score_catalogue(cases)
    np.testing.assert_allclose(scorer(fitted, "item_knn").score_catalogue(cases), anew, rtol=1e-5, atol=1e-7)


def test_the_stage_for_upstream_lists_stays_without_its_cut_or_is_learned_anew(saved, shop):
    stage = saved.fitted.stage
    lent = replace(saved, fitted=replace(saved.fitted, upstream_stage=stage))
    assert stage.profile is not None
    fitted = again(lent).fitted
    assert fitted.upstream_stage.blend.to_dict() == stage.blend.to_dict()
    assert fitted.upstream_stage.cut is None
    assert fitted.upstream_stage.profile is None
    assert LENT_UPSTREAM in fitted.report["lines"]
    assert LENT_UPSTREAM not in again(saved).fitted.report["lines"]
    events = shop[0]
    late = events[(events["event"] == "purchase") & (events["timestamp"] > events["timestamp"].quantile(0.85))]
    others = late.assign(item_id=np.roll(late["item_id"].to_numpy(), 7), upstream_score=0.2)
    shown = late.assign(upstream_score=0.6)
    lists = pd.concat([shown, others])[["user_id", "item_id", "timestamp", "upstream_score"]]
    learned = again(lent, lists).fitted
    assert learned.upstream_stage.upstream_scale is not None
    assert LENT_UPSTREAM not in learned.report["lines"]


def test_nothing_older_than_the_retention_is_learned_from(saved):

    middle = int(np.median(saved.events.times))
    fitted = again(saved, retention_days=(time.time() - middle) / 86_400)
    assert fitted.events.times[0] >= middle - 5
    assert 0 < len(fitted.events) < len(saved.events)
    (reason,) = [name for name in fitted.fitted.report["dropped"] if "retention_days" in name]
    assert fitted.fitted.report["dropped"][reason] == len(saved.events) - len(fitted.events)
    with pytest.raises(DataError, match="nothing to learn from: none of 0 events"):
        again(saved, retention_days=1)
