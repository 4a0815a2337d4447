"""Component scores: standardising against reference items, retrieval, and the two ways to score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llm_rerank.models.collaborative.popularity import Popularity
from llm_rerank.models.scoring import score_candidates
from llm_rerank.recommendation.components import (
    MOST_REFERENCE_ITEMS,
    Component,
    reference_items,
    retrieve_and_score,
    standardize_rows,
)
from llm_rerank.recommendation.specs import ComponentSpec, default_specs
from llm_rerank.types import DataError, Ragged
from tests.planted import planted_shop


@given(hnp.arrays(np.float32, (3, 7), elements=st.sampled_from([np.nan, -2.0, 0.0, 1.0, 5.0])))
def test_standardising_leaves_unknown_scores_out(scores):
    reference = np.array([0, 2, 3, 6])
    mean, deviation = standardize_rows(scores, reference)
    for row, values in enumerate(scores):
        known = values[reference][~np.isnan(values[reference])]
        if not len(known):
            assert np.isnan(mean[row, 0])
            assert deviation[row, 0] == 1
        else:
            assert mean[row, 0] == pytest.approx(known.mean(), abs=1e-5)
            assert deviation[row, 0] == pytest.approx(known.std() or 1.0, abs=1e-5)


def test_reference_items_are_all_or_a_fixed_sample():
    np.testing.assert_array_equal(reference_items(7, seed=0), np.arange(7))
    sample = reference_items(20_000, seed=3)
    assert len(np.unique(sample)) == MOST_REFERENCE_ITEMS
    np.testing.assert_array_equal(sample, reference_items(20_000, seed=3))
    assert (sample != reference_items(20_000, seed=4)).any()


@pytest.fixture(scope="module")
def planted():
    return planted_shop()


@pytest.fixture(scope="module")
def components(planted):
    made = []
    for spec in default_specs(len(planted.items), encoder=None):
        scorer = spec.make().fit(planted.past, planted.items, seed=0)
        made.append(Component(scorer, spec.group, spec.retrieves, spec.blends, {}))
    return made


def test_candidates_are_the_union_of_the_best_of_each_without_the_seen(planted, components):
    n_items = len(planted.items)
    seen = Ragged.from_lists([planted.cases.history[i] for i in range(len(planted.cases))])
    found = retrieve_and_score(
        components, planted.cases, np.arange(n_items), n_items, candidates_per_source=5, seen=seen
    ).cases.candidates
    for case in range(0, len(planted.cases), 17):
        assert not set(found[case]) & set(seen[case])
        assert len(set(found[case])) == len(found[case])
        for component in components:
            scores = component.scorer.score_catalogue(planted.cases.take(np.array([case])))[0]
            scores[seen[case]] = np.nan
            best = [code for code in np.argsort(-scores, kind="stable") if not np.isnan(scores[code])][:5]
            assert set(best) <= set(found[case])


def test_scores_are_the_scorers_own_on_a_common_scale(planted, components):
    n_items = len(planted.items)
    scored = retrieve_and_score(components, planted.cases, np.arange(n_items), n_items)
    blended = [component for component in components if component.blends]
    for column, component in enumerate(blended):
        np.testing.assert_allclose(
            scored.raw[:, column], score_candidates(component.scorer, planted.cases), rtol=1e-5, atol=1e-6
        )
    everything = planted.cases.with_candidates(Ragged.from_lists([np.arange(n_items)] * len(planted.cases)))
    full = retrieve_and_score(components, everything, np.arange(n_items), n_items).scores
    by_case = full.reshape(len(planted.cases), n_items, len(blended))
    np.testing.assert_allclose(np.nanmean(by_case, axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(np.nanstd(by_case, axis=1), 1, atol=1e-3)


def test_blocks_of_any_size_give_the_same_and_report_every_case(planted, components, monkeypatch):
    n_items, cases = len(planted.items), planted.cases.take(np.arange(0, 320, 16))
    options = {"candidates_per_source": 5, "seen": cases.history}  # as many rows as cases, all different
    whole = retrieve_and_score(components, cases, np.arange(n_items), n_items, **options)
    for cells in (1, 7 * n_items):  # blocks of one case, and of seven
        monkeypatch.setattr("llm_rerank.models.scoring.BLOCK_CELLS", cells)
        done = []
        parts = retrieve_and_score(components, cases, np.arange(n_items), n_items, progress=done.append, **options)
        assert sum(done) == len(cases)
        np.testing.assert_array_equal(parts.cases.candidates.values, whole.cases.candidates.values)
        np.testing.assert_array_equal(parts.cases.candidates.offsets, whole.cases.candidates.offsets)
        np.testing.assert_allclose(parts.raw, whole.raw, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-3, atol=1e-4)


def test_cases_taken_bring_their_scores_raw_and_standardised(planted, components):
    n_items = len(planted.items)
    scored = retrieve_and_score(components, planted.cases, np.arange(n_items), n_items)
    taken = scored.take(np.array([5, 2]))
    places = np.concatenate([np.arange(*scored.cases.candidates.offsets[row : row + 2]) for row in (5, 2)])
    np.testing.assert_array_equal(taken.cases.candidates.values, scored.cases.candidates.values[places])
    np.testing.assert_array_equal(taken.scores, scored.scores[places])
    np.testing.assert_array_equal(taken.raw, scored.raw[places])
    assert not np.array_equal(scored.raw, scored.scores, equal_nan=True)


def test_codes_outside_the_catalogue_have_no_score(planted, components):
    n_items = len(planted.items)
    cases = planted.cases.take(np.array([0])).with_candidates(Ragged.from_lists([[-1, 3, n_items, n_items + 7]]))
    scored = retrieve_and_score(components, cases, np.arange(n_items), n_items)
    for values in (scored.raw, scored.scores):
        assert np.isnan(values[[0, 2, 3]]).all()
        assert np.isfinite(values[1]).all()


def test_only_what_retrieves_brings_candidates(planted, components):
    n_items = len(planted.items)
    by_name = {component.name: component for component in components}
    popular, other = by_name["recent_popularity"], by_name["item_knn"]
    silent = Component(other.scorer, other.group, False, True, {})
    cases = planted.cases.take(np.arange(4))

    def found(some):
        result = retrieve_and_score(some, cases, np.arange(n_items), n_items, candidates_per_source=5)
        return [set(result.cases.candidates[row]) for row in range(len(cases))]

    assert found([popular, silent]) == found([popular])
    assert found([popular, other]) != found([popular])


def test_text_beside_behaviour_brings_candidates(planted, components):
    # the group decides, whatever the scorer: one list called text, one called behaviour
    text = Component(components[0].scorer, "semantic", True, True, {})
    popular = Component(Popularity().fit(planted.past, planted.items, seed=0), "collaborative", True, True, {})
    cases, n_items = planted.cases.take(np.array([0])), len(planted.items)
    found = retrieve_and_score([text, popular], cases, np.arange(n_items), n_items, candidates_per_source=5)
    assert 5 < found.cases.candidates.lengths[0] <= 10


class CodesAsScores:
    """A scorer of single candidates, as a cross-encoder is: the score is a tenth of the item's code."""

    name, depends_on_list = "codes", False

    def fit(self, past, items, *, seed):
        return self

    def score(self, cases):
        return (cases.candidates.values / 10).astype(np.float32)

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder):
        raise NotImplementedError


def test_a_scorer_of_candidates_alone_brings_its_own_scale(planted):
    cases = planted.cases.take(np.arange(3))
    component = Component(CodesAsScores(), "semantic", False, True, {})
    scored = retrieve_and_score([component], cases, np.arange(3), len(planted.items))
    expected = (cases.candidates.values / 10).astype(np.float32)[:, None]
    np.testing.assert_array_equal(scored.raw, expected)
    np.testing.assert_array_equal(scored.scores, expected)


def test_settings_are_counted_with_their_decays():
    spec = ComponentSpec("any", "collaborative", Popularity, grid=[{}, {}, {}])
    assert spec.n_settings == 3
    assert ComponentSpec("any", "collaborative", Popularity, grid=[{}, {}, {}], decays=(0.1, 0.2)).n_settings == 6


def test_text_alone_never_brings_the_candidates(planted, components):
    alone = [Component(components[0].scorer, "semantic", True, True, {})]
    with pytest.raises(DataError, match="text alone"):
        retrieve_and_score(alone, planted.cases, np.arange(3), len(planted.items), candidates_per_source=5)


def test_popularity_brings_candidates_to_a_newcomer(planted):
    popular = Component(Popularity().fit(planted.past, planted.items, seed=0), "collaborative", True, False, {})
    cases = planted.cases.take(np.array([0]))
    scored = retrieve_and_score([popular], cases, np.arange(3), len(planted.items), candidates_per_source=4)
    assert scored.cases.candidates.lengths.tolist() == [4]
    assert scored.scores.shape == (4, 0)


def test_large_catalogues_do_without_ease():
    names = [spec.name for spec in default_specs(20_001, encoder=None)]
    assert "text_ease" not in names
    assert "ease" not in names
    assert {"als", "item_knn"} <= set(names)
    assert "text_ease" in [spec.name for spec in default_specs(20_000, encoder=None)]
    # without an encoder there is no semantic scorer to make; words need none
    assert "semantic" not in names
    assert "lexical" in names
    behaviour = [spec.name for spec in default_specs(100, encoder=None, text=False)]
    assert "ease" in behaviour
    assert not {"text_ease", "lexical"} & set(behaviour)
