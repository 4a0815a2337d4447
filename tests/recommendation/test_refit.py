"""The refit on all rows: kept where it ranks as the judged components did, refused where it does not."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.recommendation.components import default_specs, reference_items
from llm_rerank.recommendation.fitting import fit_and_score_holdout
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.judging import report_and_cut
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.refit import refit_components
from llm_rerank.recommendation.stage import fit_stage
from llm_rerank.types import DataReport

CONFIG = RerankerConfig(encoder=None, candidates_per_source=30, threshold=ThresholdConfig("recall", 0.9))


@pytest.fixture(scope="module")
def judged(shop):
    events, items, _, _ = read_shop(CONFIG, *shop, None, None, None, "auto", DataReport())
    data = FitData(events, items, None, None, np.full(len(events), np.nan, np.float32))
    specs = [replace(spec, grid=spec.grid[:1], decays=()) for spec in default_specs(len(items), encoder=None)]
    tools = FitTools(CONFIG, None, specs, PAIR_FEATURES, Renderer())
    holdout = plan_holdout(events, 0, FitLog(verbose=False))
    components, past_items, fold_f, fold_g = fit_and_score_holdout(data, tools, holdout, FitLog(verbose=False))
    names = [component.name for component in components if component.blends]
    # no pair features: brand and sales alone could hold the order where the components fail
    stage = fit_stage(fold_f, names, features=(), n_items=len(items), start=None, seed=0)
    stage, _ = report_and_cut(stage, fold_g, CONFIG, len(items), FitLog(verbose=False))
    return specs, components, past_items, fold_g, stage, holdout


def refit(judged, events):
    specs, components, items, fold_g, stage, _ = judged
    log = FitLog(verbose=False)
    kept = refit_components(components, specs, events, items, fold_g, stage, reference_items(len(items), 0), 0, log)
    return kept, log.lines[-1]


def test_the_same_rows_give_the_same_components(judged):
    kept, line = refit(judged, judged[5].past)
    assert "before and after 1.000" in line
    assert all(new is not old for new, old in zip(kept, judged[1], strict=True))


def test_components_that_rank_otherwise_are_refused_with_a_warning(judged):
    past = judged[5].past
    shuffled = replace(past, items=np.random.default_rng(0).permutation(past.items))
    kept, line = refit(judged, shuffled)
    assert line.startswith("warning: refit")
    assert all(new is old for new, old in zip(kept, judged[1], strict=True))
