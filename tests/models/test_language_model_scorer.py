import shutil

import numpy as np
import pytest

from llm_rerank.models.language_model.causal import CausalLanguageModel
from llm_rerank.models.language_model.reference import log_likelihood_alone
from llm_rerank.models.language_model.scorer import LanguageModelScorer
from llm_rerank.types import DataError, NotFittedError, StorageError
from tests.planted import planted_shop
from tests.planted_language_model import written_model
from tests.scorer_suite import check_scorer

HEADING = "A customer of an online shop chose these products, one after another:\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written_model(tmp_path_factory.mktemp("model"), steps=120)


@pytest.fixture(scope="module")
def model(folder):
    return CausalLanguageModel(str(folder), device="cpu", dtype="float32")


def test_it_passes_the_suite_of_all_scorers(folder, tmp_path):
    """The model has read lists of each theme's items: trained so, it tells the user's theme from the others."""
    check_scorer(
        lambda: LanguageModelScorer(str(folder), device="cpu", dtype="float32"),
        tmp_path,
        quality_floor=0.8,
        new_items="known",
        shop=planted_shop(n_users=60),
    )


def test_a_score_is_what_the_history_adds_to_the_log_likelihood(model):
    scorer = LanguageModelScorer(model)
    [scores] = scorer.predict([["moka pot", "milk frother"]], [["espresso cups", "hiking tent"]])

    def twin(lines, text):
        beginning = model.beginning_ids(HEADING + "".join(f"- {line}\n" for line in lines) + "-")
        return log_likelihood_alone(model._network, beginning, model.continuation_ids([f" {text}\n"])[0])

    expected = [twin(["moka pot", "milk frother"], t) - twin([], t) for t in ("espresso cups", "hiking tent")]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert scores[0] > 0 > scores[1]


def test_of_a_long_history_the_newest_distinct_items_are_read(model):
    scorer = LanguageModelScorer(model, history_length=2)
    candidates = ["espresso cups", "hiking tent"]
    long, again, short = scorer.predict(
        [["fishing rod"] * 50 + ["moka pot", "milk frother"], ["milk frother", "moka pot", "milk frother"],
         ["moka pot", "milk frother"]],
        [candidates] * 3,
    )  # fmt: skip
    np.testing.assert_array_equal(long, short)
    np.testing.assert_array_equal(again, short)


def test_what_cannot_be_scored_is_nan_and_the_rest_is_as_without_it(model):
    scorer = LanguageModelScorer(model)
    blank, none, whole = scorer.predict(
        [["moka pot", " "], ["", " "], ["moka pot"]], [["espresso cups", " "], ["espresso cups"], ["espresso cups"]]
    )
    assert np.isnan(blank[1]) and np.isnan(none).all()
    assert blank[0] == whole[0]
    assert scorer.predict([], []) == []


def test_texts_are_cut_and_a_template_in_one_is_data(model):
    scorer = LanguageModelScorer(model, item_tokens=3)
    cut, long = scorer.predict(
        [["moka pot"]] * 2, [["espresso cups and a great deal more", "{{ 7 * 7 }}"], ["espresso cups " * 30_000] * 2]
    )
    assert np.isfinite(cut).all() and np.isfinite(long).all()


def test_another_model_than_the_saved_one_is_refused(folder, tmp_path):
    shop = planted_shop(n_users=20)
    own = shutil.copytree(folder, tmp_path / "model")
    scorer = LanguageModelScorer(str(own), device="cpu", dtype="float32").fit(shop.past, shop.items, seed=0)
    scorer.save(tmp_path / "saved")
    np.testing.assert_array_equal(
        LanguageModelScorer.load(tmp_path / "saved").score(shop.cases), scorer.score(shop.cases)
    )
    written_model(own, seed=3)  # other weights in the same place
    with pytest.raises(StorageError, match="other weights"):
        LanguageModelScorer.load(tmp_path / "saved")


def test_impossible_settings_and_unfitted_scorers_are_refused(model):
    with pytest.raises(DataError, match="history_length is 0"):
        LanguageModelScorer(model, history_length=0)
    with pytest.raises(DataError, match="lower history_length"):
        LanguageModelScorer(model, history_length=400)
    with pytest.raises(NotFittedError):
        LanguageModelScorer(model).score(planted_shop(n_users=20).cases)
    with pytest.raises(DataError, match="one row a user"):
        LanguageModelScorer(model).predict([["a"]], [])
