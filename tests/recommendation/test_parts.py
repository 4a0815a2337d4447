"""Which parts join a fit: measured on held-out users, kept where they pay, and how each setting overrules that."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.rendering import Renderer
from llm_rerank.models.collaborative.popularity import Popularity
from llm_rerank.models.scoring import score_candidates
from llm_rerank.recommendation.held_out import HeldOutCases
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import PartVerdict, _judge, stand_on_parts
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import ComponentSpec, default_specs, in_use, specs_for
from llm_rerank.statistics import Difference
from llm_rerank.types import DataError, DataReport
from tests.tiny_encoder import save_tiny_encoder

CONFIG = RerankerConfig(encoder=None, candidates_per_source=150, refit=False)  # all items


class Theme:
    """Knows what these tests planted: a user's taste is a theme, and items of one theme lie side by side."""

    name = "sequence"
    depends_on_list = False

    def fit(self, past, items, *, seed=0):
        self.theme = np.unique(items.frame["theme"], return_inverse=True)[1]
        return self

    def score_catalogue(self, cases):
        scores = np.zeros((len(cases), len(self.theme)), dtype=np.float32)
        np.add.at(scores, cases.history.row_of_value, self.of_item(cases.history.values))
        return scores

    def of_item(self, codes):
        return (self.theme[codes][:, None] == self.theme[None, :]).astype(np.float32)

    def score(self, cases):
        return score_candidates(self, cases)


class Silent(Theme):
    """Has the same to say of every item."""

    def of_item(self, codes):
        return np.zeros((len(codes), len(self.theme)), dtype=np.float32)


class Broken(Theme):
    """Cannot be fitted on these data."""

    def fit(self, past, items, *, seed=0):
        raise DataError("nothing to learn from")


def data_of(shop, config=CONFIG):
    events, items, _, _ = read_shop(config, *shop, None, None, None, "auto", DataReport())
    return FitData(events, items, None, None, np.full(len(events), np.nan, dtype=np.float32))


@pytest.fixture(scope="module")
def data(shop):
    return data_of(shop)


def stand(data, part_specs, config=CONFIG):
    base = [ComponentSpec("popularity", "collaborative", Popularity)]
    tools = FitTools(config, None, [*base, *part_specs], (), Renderer())
    log = FitLog(verbose=False)
    holdout = plan_holdout(data.events, 0, log)
    return stand_on_parts(HeldOutCases.of(data, tools, holdout), tools, log), log


def part(scorer, name="sequence"):
    return ComponentSpec(scorer.name, "collaborative", scorer, part=name)


def names(standing):
    return [component.name for component in standing.components]


def test_a_part_that_knows_something_joins_and_is_said_with_interval_and_cost(data):
    standing, log = stand(data, [part(Theme)])
    assert names(standing) == ["popularity", "sequence"]
    assert standing.stage.component_names == ("popularity", "sequence")
    (verdict,) = standing.verdicts
    assert verdict.kept
    assert verdict.difference.low > 0.01
    assert verdict.ndcg[1] - verdict.ndcg[0] == pytest.approx(verdict.difference.mean)
    assert verdict.n_cases == len(standing.folds.f.targets.lengths)
    assert standing.ndcg.mean() == verdict.ndcg[1]
    assert verdict.sentence() in log.lines
    assert "on; leave it out with sequence='off'" in verdict.sentence()
    assert verdict.seconds > 0


def test_a_part_with_nothing_to_say_stays_out_and_leaves_no_trace(data):
    standing, log = stand(data, [part(Silent)])
    alone, _ = stand(data, [])
    assert names(standing) == names(alone) == ["popularity"]
    assert [spec.name for spec in standing.specs] == ["popularity"]
    assert standing.stage.to_dict() == alone.stage.to_dict()
    np.testing.assert_array_equal(standing.folds.g.scored.scores, alone.folds.g.scored.scores)
    assert not standing.verdicts[0].kept
    assert "off; keep it with sequence='always'" in log.lines[-1]


def test_a_part_goes_where_it_is_worse_by_more_than_a_standard_error():
    tools = SimpleNamespace(config=CONFIG)
    noise = np.tile([0.1, -0.1], 200)  # 400 cases, a standard error of .005
    error = float(noise.std(ddof=1)) / 20

    def verdict_at(loss):
        standings = [SimpleNamespace(ndcg=values) for values in (np.full(400, 0.2), 0.2 + noise - loss)]
        return _judge("sequence", *standings, tools, 1.0)

    assert verdict_at(-0.001).kept and verdict_at(-0.001).reason == ""
    assert verdict_at(0.9 * error).kept and "within a standard error of no loss" in verdict_at(0.9 * error).sentence()
    assert (
        not verdict_at(1.1 * error).kept and "off; keep it with sequence='always'" in verdict_at(1.1 * error).sentence()
    )


def test_always_keeps_a_part_that_does_not_pay(data):
    standing, log = stand(data, [part(Silent)], replace(CONFIG, sequence="always"))
    assert names(standing) == ["popularity", "sequence"]
    assert "on; leave it out with sequence='off' (sequence='always')" in log.lines[-1]


def test_a_part_that_cannot_be_fitted_is_left_out_and_said(data):
    standing, log = stand(data, [part(Broken)])
    assert names(standing) == ["popularity"]
    assert log.lines[-1] == "sequence: left out, for it cannot be fitted here: nothing to learn from"


def test_parts_are_tried_on_top_of_those_before_them(data):
    twin = type("Twin", (Theme,), {"name": "semantic"})
    standing, _ = stand(data, [part(twin, "semantic"), part(Theme)])
    assert [verdict.part for verdict in standing.verdicts] == ["sequence", "semantic"]
    # what the first part says already is worth nothing a second time
    assert standing.verdicts[1].ndcg[0] == standing.verdicts[0].ndcg[1]
    assert abs(standing.verdicts[1].difference.mean) < 0.2 * standing.verdicts[0].difference.mean


def test_too_few_cases_to_judge_leave_a_part_out(shop):
    events, items = shop
    few = events[events["user_id"].isin([f"u{n}" for n in range(60)])]
    standing, log = stand(data_of((few, items)), [part(Theme)])
    (verdict,) = standing.verdicts
    assert verdict.difference is None and verdict.ndcg is None
    assert not verdict.kept
    assert PartVerdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict
    assert "not judged" in log.lines[-1]
    assert "too few held-out cases to tell" in log.lines[-1]
    kept, _ = stand(data_of((few, items)), [part(Theme)], replace(CONFIG, sequence="always"))
    assert names(kept) == ["popularity", "sequence"]


def test_a_part_takes_the_place_of_a_component_of_its_name_and_keeps_its_settings():
    specs = [
        ComponentSpec("a", "collaborative", Popularity),
        ComponentSpec("b", "collaborative", Popularity),
        ComponentSpec("a", "collaborative", Theme, part="semantic"),
        ComponentSpec("c", "collaborative", Theme, part="semantic"),
    ]
    assert [(spec.name, spec.make) for spec in in_use(specs, ())] == [("a", Popularity), ("b", Popularity)]
    assert [(spec.name, spec.make) for spec in in_use(specs, ("semantic",))] == [
        ("a", Theme), ("b", Popularity), ("c", Theme),
    ]  # fmt: skip


def test_the_encoder_joins_text_ease_with_the_settings_of_the_one_without(shop, tmp_path):
    config = replace(CONFIG, encoder=save_tiny_encoder(tmp_path), sequence="off", semantic="always")
    reranker = Reranker(replace(config, cross_encoder="off"), verbose=False).fit(*shop)
    by_name = {component.name: component for component in reranker.components}
    assert list(by_name) == ["text_ease", "als", "item_knn", "recent_popularity", "semantic"]
    assert by_name["text_ease"].scorer._kernel.encoder is not None
    plain = Reranker(replace(config, semantic="off", cross_encoder="off"), verbose=False).fit(*shop)
    assert plain.components[0].settings == by_name["text_ease"].settings
    assert plain.components[0].scorer._kernel.encoder is None
    assert [part["part"] for part in reranker.report().values["parts"]] == ["semantic"]


def test_a_part_left_out_leaves_the_reranker_that_never_tried_it(shop):
    config = replace(CONFIG, sequence="off", refit=True)
    specs = [spec for spec in default_specs(144, encoder=None) if spec.part is None]
    plain = Reranker(config, components=specs, verbose=False).fit(*shop)
    silent = replace(part(Silent), retrieves=False)  # candidates of its own would change what newcomers' lists teach
    tried = Reranker(config, components=[*specs, silent], verbose=False).fit(*shop)
    assert [verdict["kept"] for verdict in tried.report().values["parts"]] == [False]
    users = sorted(shop[0]["user_id"].unique()[:20])
    assert plain.recommend(users, k=10).equals(tried.recommend(users, k=10))


def test_settings_and_searches_choose_the_specs(data):
    always = ["text_ease", "als", "item_knn", "recent_popularity"]
    assert [spec.name for spec in specs_for(replace(CONFIG, sequence="off"), data.events, None)] == always
    assert [spec.name for spec in specs_for(CONFIG, data.events, None)] == [*always, "sequence"]
    queries = data.events.queries.copy()
    queries[7] = "a lamp"
    searched = specs_for(replace(CONFIG, sequence="off"), replace(data.events, queries=queries), None)
    assert [spec.name for spec in searched] == ["text_ease", "als", "item_knn", "lexical", "recent_popularity"]
    # without text-aware EASE, nothing else would read what the items say
    for n_items, names in ((20_000, always), (20_001, ["als", "item_knn", "lexical", "recent_popularity"])):
        large = specs_for(replace(CONFIG, sequence="off"), replace(data.events, n_items=n_items), None)
        assert [spec.name for spec in large] == names
    assert [spec.part for spec in default_specs(100, encoder=None)][-1] == "sequence"
    assert all(spec.part != "sequence" for spec in default_specs(60_000, encoder=None))
    for name in ("sequence", "semantic"):
        with pytest.raises(DataError, match=f"{name} is 'perhaps'; it must be one of auto, always, off"):
            RerankerConfig(**{name: "perhaps"})


@pytest.mark.parametrize("name", ["semantic", "cross_encoder"])
def test_a_part_that_reads_text_cannot_be_kept_always_without_an_encoder(name):
    with pytest.raises(DataError, match=f"{name} is 'always' and encoder None"):
        RerankerConfig(encoder=None, **{name: "always"})
    assert getattr(RerankerConfig(encoder=None, sequence="always"), name) == "auto"


@pytest.mark.parametrize(
    ("base", "said"),
    [(0.1, "+0.2 % [-0.4, +0.9]"), (0.0, "+0.0002 [-0.0004, +0.0009]")],
)
def test_a_gain_is_said_as_a_share_of_what_stood(base, said):
    difference = Difference(0.0002, -0.0004, 0.0009, 0.5, 900)
    verdict = PartVerdict("semantic", (base, base + 0.0002), difference, 900, 660.0, pays=False, kept=False)
    assert verdict.sentence() == (
        f"semantic: {said} (NDCG@10 of 900 held-out cases {base:.4f} → {base + 0.0002:.4f}), costs 11 min: "
        "off; keep it with semantic='always'"
    )
    assert verdict.to_dict()["difference"]["low"] == -0.0004
