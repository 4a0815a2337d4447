import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from llm_rerank.data.splits import hash_users
from llm_rerank.models.collaborative import neural, neural_training
from llm_rerank.models.collaborative.neural import NeuralScorer
from llm_rerank.models.collaborative.neural_training import Network, TrainingRows, TrainingSettings, train
from llm_rerank.models.scoring import history_matrix
from llm_rerank.types import DataError, NotFittedError, Ragged
from tests.planted import cases_of, events_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, first_rate

SETTINGS = TrainingSettings(
    explicit=False, embedding_size=6, hidden_size=9, learning_rate=0.01, epochs=5, patience=3, batch_size=32,
    dropout=0.0, negatives=8, negative_weight=5.0,
)  # fmt: skip
FAST = {"embedding_size": 16, "hidden_size": 32, "learning_rate": 0.01, "batch_size": 128, "epochs": 25}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shop():
    return planted_shop()


@pytest.fixture(scope="module")
def fitted(shop):
    return NeuralScorer(**FAST).fit(shop.past, shop.items, seed=0)


def random_rows(n_rows=40, n_items=12, n_attributes=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.random((n_rows, n_items)) * (rng.random((n_rows, n_items)) < 0.4)
    weights[:, 0] += 0.1
    return TrainingRows(
        csr_matrix((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)),
        rng.normal(size=(n_rows, n_attributes)).astype(np.float32),
        rng.integers(0, n_items, n_rows),
        rng.normal(size=n_rows).astype(np.float32),
        np.ones(n_rows, dtype=np.float32),
    )


def with_attributes(shop, rows):
    """Each user's attributes say the theme; the cases have no history."""
    cases = cases_of([[]] * len(rows), [[]] * len(rows)).with_candidates(shop.cases.candidates.take(rows))
    return replace(cases, user_rows=rows, targets=shop.cases.targets.take(rows))


def test_passes_the_suite(tmp_path):
    check_scorer(lambda: NeuralScorer(**FAST), tmp_path, quality_floor=0.75)


def test_explicit_passes_the_suite(tmp_path):
    """Users rate items of any theme, 5 in their own and 1 elsewhere; low ratings weigh −1, also in histories."""
    shop = planted_shop(loyalty=0.3, events_a_user=16)
    matches = shop.item_themes[shop.past.items] == shop.user_themes[shop.past.users]
    past = replace(
        shop.past,
        ratings=np.where(matches, 5, 1).astype(np.float32),
        weights=np.where(matches, 1, -1).astype(np.float32),
        positive=matches,
    )
    own = shop.item_themes[shop.cases.history.values] == np.repeat(shop.user_themes, shop.cases.history.lengths)
    cases = replace(shop.cases, history_weights=np.where(own, 1, -1).astype(np.float32))
    scorer = check_scorer(
        lambda: NeuralScorer(form="explicit", **FAST),
        tmp_path,
        quality_floor=0.45,
        shop=replace(shop, past=past, cases=cases),
    )
    # on the scale of ratings, around their mean
    assert np.nanmean(scorer.score(cases)) == pytest.approx(past.ratings.mean(), abs=1.0)


def test_a_linear_layer_over_a_concatenation_gives_every_user_one_order(shop, fitted):
    """The article's layer, fitted to the same tables: why there is a kink between."""
    histories = history_matrix(shop.cases, len(shop.items))
    users = histories @ fitted._fitted()["history_table"]
    items = np.nan_to_num(fitted._fitted()["item_table"])
    layer = np.random.default_rng(0).normal(size=2 * users.shape[1]).astype(np.float32)
    joined = np.concatenate(
        [np.repeat(users[:20, None], len(items), 1), np.repeat(items[None], 20, 0)], axis=2
    )  # (20, n_items, 2 × hidden)
    linear = (joined @ layer).round(4)
    order = np.argsort(linear[0], kind="stable")
    assert (np.diff(linear[:, order], axis=1) >= -2e-3).all()
    ours = fitted.score_catalogue(shop.cases.take(np.arange(20)))
    best = np.nanargmax(ours, axis=1)
    assert len(np.unique(shop.item_themes[best])) >= 6  # of the 8 themes that these 20 users like


def test_scores_are_those_of_the_network_row_by_row():
    """The split first layer, against the network as torch computes it on the concatenation."""
    torch.manual_seed(3)
    network = Network(12, 2, SETTINGS)
    network.eval()
    with torch.no_grad():
        network.attribute_weights.normal_()
        network.history_layer.bias.normal_()
        network.output.bias.normal_()
        rows = random_rows()
        pooled = torch.from_numpy(rows.histories.toarray()) @ network.history_table.weight
        joined_weights = torch.cat(
            [network.history_layer.weight, network.attribute_weights.T, network.item_layer.weight], dim=1
        )
        joined = torch.cat(
            [pooled, torch.from_numpy(rows.attributes), network.item_table.weight[rows.items]], dim=1
        )  # the article's concatenation
        hidden = torch.relu(joined @ joined_weights.T + network.history_layer.bias)
        expected = hidden @ network.output.weight[0] + network.output.bias
        ours = network.score(network.user_part(rows) + network.item_part(rows.items))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    tables = network.tables()
    user_part = rows.histories @ tables["history_table"] + rows.attributes @ tables["attribute_weights"]
    hidden = np.maximum(user_part + tables["hidden_bias"] + tables["item_table"][rows.items], 0)
    np.testing.assert_allclose(hidden @ tables["output_weights"] + tables["output_bias"], expected, atol=1e-5)


def test_the_network_starts_as_a_similarity():
    """In fours, |x + y| − |x − y| = 2·sign(xy)·min(|x|, |y|), x and y one projection of history and item."""
    torch.manual_seed(0)
    network = Network(12, 0, replace(SETTINGS, hidden_size=8))
    network.eval()
    projection = network.history_layer.weight[:2]
    with torch.no_grad():
        rows = random_rows(n_attributes=0)
        pooled = torch.from_numpy(rows.histories.toarray()) @ network.history_table.weight
        x, y = (pooled @ projection.T).numpy(), (network.history_table.weight[rows.items] @ projection.T).numpy()
        scores = network.score(network.user_part(rows) + network.item_part(rows.items)).numpy()
    expected = (2 * np.sign(x * y) * np.minimum(np.abs(x), np.abs(y))).sum(axis=1)
    np.testing.assert_allclose(scores - float(network.output.bias.detach()), expected, atol=1e-5)


def test_histories_are_means_not_sums(shop, fitted):
    """Twice the weight on every event changes nothing; on one event it does."""
    cases = shop.cases.take(np.arange(10))
    scores = fitted.score(cases)
    doubled = replace(cases, history_weights=cases.history_weights * np.float32(2))
    np.testing.assert_allclose(fitted.score(doubled), scores, atol=1e-5)
    one = cases.history_weights.copy()
    one[cases.history.offsets[:-1]] *= 3
    assert np.nanmax(np.abs(fitted.score(replace(cases, history_weights=one)) - scores)) > 0.01


def test_small_blocks_score_alike(shop, fitted, monkeypatch):
    cases = shop.cases.take(np.arange(30))
    whole = fitted.score_catalogue(cases)
    for cells in (1, 100, 2**12, 2**30):
        monkeypatch.setattr(neural, "_BLOCK_CELLS", cells)
        np.testing.assert_allclose(fitted.score_catalogue(cases), whole, atol=1e-5)


def test_the_kept_epoch_is_the_best_on_held_out_users(shop):
    """Its tables give the least held-out loss of the curve; training went on for ``patience`` epochs after it."""
    rows = random_rows(200, seed=1)
    held_out = random_rows(40, seed=2)  # another random world: soon overfitted
    how = replace(SETTINGS, epochs=60, learning_rate=0.05, explicit=True)
    tables, (curve, held_out_curve, *_) = train(rows, held_out, np.arange(12), how, seed=0)
    best = int(np.argmin(held_out_curve))
    assert len(curve) == len(held_out_curve) == best + how.patience + 1 < 60
    user_part = held_out.histories @ tables["history_table"] + held_out.attributes @ tables["attribute_weights"]
    hidden = np.maximum(user_part + tables["hidden_bias"] + tables["item_table"][held_out.items], 0)
    scores = hidden @ tables["output_weights"] + tables["output_bias"]
    assert np.mean((scores - held_out.targets) ** 2) == pytest.approx(held_out_curve.min(), rel=1e-4)
    assert curve[-1] < curve[0]


@pytest.mark.parametrize("cells", [1, 2**22])
def test_what_is_found_is_counted_over_all_items_that_can_be_drawn(monkeypatch, cells):
    """By the tables of the only epoch, ranked one by one; items 0 and 29 are not drawable, and never found."""
    monkeypatch.setattr(neural_training, "_RANKED_CELLS", cells)
    rows, held_out = random_rows(200, n_items=30, seed=1), random_rows(40, n_items=30, seed=2)
    assert {0, 29} & set(held_out.items.tolist())
    drawable = np.arange(1, 29)
    tables, curves = train(rows, held_out, drawable, replace(SETTINGS, epochs=1), seed=0)
    user_part = held_out.histories @ tables["history_table"] + held_out.attributes @ tables["attribute_weights"]
    hidden = np.maximum((user_part + tables["hidden_bias"])[:, None] + tables["item_table"][drawable], 0)
    scores = hidden @ tables["output_weights"]
    places = [
        list(drawable[np.argsort(-row)]).index(item) if item in drawable else 30
        for row, item in zip(scores, held_out.items, strict=True)
    ]
    assert curves.found_in_ten.tolist() == pytest.approx([np.mean(np.array(places) < 10)])
    assert curves.found_first.tolist() == pytest.approx([np.mean(np.array(places) == 0)])


def test_of_many_held_out_events_some_are_ranked_and_of_ratings_none(monkeypatch):
    rows, held_out = random_rows(100, seed=1), random_rows(60, seed=2)
    monkeypatch.setattr(neural_training, "MOST_RANKED", 20)
    once = replace(SETTINGS, epochs=1, batch_size=64)  # one batch of draws for 20 held-out events as for 60
    _, few = train(rows, held_out, np.arange(12), once, seed=0)
    _, same = train(rows, held_out.take(np.arange(0, 60, 3)), np.arange(12), once, seed=0)
    np.testing.assert_array_equal(few.found_in_ten, same.found_in_ten)
    assert few.held_out_loss != same.held_out_loss  # all of them are in the loss
    _, rated = train(rows, held_out, np.arange(12), replace(SETTINGS, epochs=2, explicit=True), seed=0)
    assert len(rated.loss) == 2 and rated.found_in_ten.shape == rated.found_first.shape == (0,)


def test_held_out_users_are_not_trained_on(shop):
    """Items that they alone took stay unknown."""
    buckets = hash_users(shop.past.user_ids, 10, salt="neural")
    spared = np.flatnonzero(buckets == 0)
    assert len(spared) > 10
    warm = int(np.setdiff1d(np.arange(len(shop.items)), shop.cold)[0])
    items = shop.past.items.copy()
    items[items == warm] = warm + 1 if warm + 1 not in shop.cold else warm + 2
    items[np.flatnonzero(shop.past.users == spared[0])[-1]] = warm
    scorer = NeuralScorer(**{**FAST, "epochs": 1}).fit(replace(shop.past, items=items), shop.items, seed=0)
    scores = scorer.score_catalogue(shop.cases.take(np.array([0])))[0]
    assert np.isnan(scores[warm])
    assert np.isnan(scores[shop.cold]).all()


def test_what_held_out_users_did_does_not_reach_the_weights(shop):
    """Their items exchanged among themselves, one epoch gives the very same tables, but another held-out loss."""
    spared = hash_users(shop.past.user_ids, 10, salt="neural")[shop.past.users] == 0
    items = shop.past.items.copy()
    items[spared] = np.random.default_rng(0).permutation(items[spared])
    one, other = (
        NeuralScorer(**{**FAST, "epochs": 1}).fit(past, shop.items, seed=0)
        for past in (shop.past, replace(shop.past, items=items))
    )
    np.testing.assert_array_equal(one._fitted()["history_table"], other._fitted()["history_table"])
    np.testing.assert_array_equal(one.loss_curve, other.loss_curve)
    assert one.held_out_curve[0] != other.held_out_curve[0]


def test_where_the_past_says_nothing_nothing_is_learned():
    """Items drawn evenly and independently: a training row that saw its own target, or later events, would do better.

    The best constant is s = log(1/ω), with loss log(1 + ω) + ω log(1 + 1/ω).
    """
    rng = np.random.default_rng(0)
    items = rng.integers(0, 30, (600, 4))
    past = events_of([(user, int(items[user, time]), time) for user in range(600) for time in range(4)], 30)
    scorer = NeuralScorer(**FAST, negative_weight=5.0).fit(past, items_of("x" * 30), seed=0)
    constant = np.log1p(5.0) + 5.0 * np.log1p(1 / 5.0)
    assert scorer.held_out_curve.min() > 0.97 * constant


def test_recall_and_accuracy_are_kept_and_rise(fitted, tmp_path):
    assert fitted.recall_curve.shape == fitted.accuracy_curve.shape == fitted.loss_curve.shape
    best = int(np.argmin(fitted.held_out_curve))
    # of 160 items users take those of a theme, 20: the ten best of it hold about half of what they take
    assert fitted.recall_curve[best] > 1.5 * fitted.recall_curve[0] and 0.3 < fitted.recall_curve[best] < 0.7
    assert (fitted.accuracy_curve <= fitted.recall_curve).all() and fitted.accuracy_curve[best] > 2 / 160
    fitted.save(tmp_path)
    loaded = NeuralScorer.load(tmp_path)
    for name in ("loss_curve", "held_out_curve", "recall_curve", "accuracy_curve"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name))


def test_loss_curves_are_kept_and_fall(fitted):
    assert len(fitted.loss_curve) == len(fitted.held_out_curve) >= 2
    assert fitted.loss_curve[-1] < 0.8 * fitted.loss_curve[0]
    assert fitted.held_out_curve.min() < 0.9 * fitted.held_out_curve[0]


def test_the_random_state_of_the_caller_is_left_alone(shop):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    NeuralScorer(**{**FAST, "epochs": 1}).fit(shop.past, shop.items, seed=5)
    torch.testing.assert_close(torch.rand(3), expected)


def test_a_newcomer_is_known_by_attributes(shop, tmp_path):
    attributes = np.eye(8, dtype=np.float32)[shop.user_themes]
    past = replace(shop.past, user_rows=np.arange(shop.past.n_users))
    scorer = NeuralScorer(user_features=attributes, **FAST).fit(past, shop.items, seed=0)
    cases = with_attributes(shop, np.arange(len(shop.cases)))
    scores = scorer.score(cases)
    assert first_rate(scores, cases) > 0.8
    scorer.save(tmp_path)
    np.testing.assert_array_equal(NeuralScorer.load(tmp_path).score(cases), scores)
    strangers = with_attributes(shop, np.array([0, 1]))
    strangers = replace(strangers, user_rows=np.array([-1, len(attributes)]))
    assert np.isnan(scorer.score(strangers)).all()


@pytest.mark.parametrize("value", [0.1, 37.3, 1.7e9])
def test_a_constant_attribute_says_nothing_and_another_value_of_it_little(shop, value):
    """In float32 a constant may deviate from its own mean; divided by that, a newcomer's other value is enormous."""
    n_users = shop.past.n_users
    attributes = np.eye(8, dtype=np.float32)[shop.user_themes]
    constant = np.column_stack([attributes, np.full(n_users, value, dtype=np.float32)])
    past = replace(shop.past, user_rows=np.arange(n_users))
    with_it = NeuralScorer(user_features=constant, **FAST).fit(past, shop.items, seed=0)
    cases = with_attributes(shop, np.arange(len(shop.cases)))
    assert first_rate(with_it.score(cases), cases) > 0.8
    tables = with_it._tables
    assert (tables["feature_mean"][8], tables["feature_deviation"][8]) == (np.float32(value), 1)
    scores = with_it.score(cases)
    with_it.user_features = constant + np.r_[np.zeros(8), 0.1].astype(np.float32)
    np.testing.assert_allclose(with_it.score(cases), scores, atol=0.2 * np.nanstd(scores))


def test_loading_and_scoring_need_no_torch(fitted, tmp_path):
    fitted.save(tmp_path)
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from llm_rerank.models.collaborative.neural import NeuralScorer\n"
        "from tests.planted import cases_of\n"
        f"scores = NeuralScorer.load(Path({str(tmp_path)!r})).score(cases_of([[1]], [[3, 4]]))\n"
        "print(*scores.tolist(), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    np.testing.assert_allclose(
        np.array(printed[:2], dtype=float), fitted.score(cases_of([[1]], [[3, 4]])), rtol=1e-5, equal_nan=True
    )
    assert printed[2] == "False"


def test_more_events_than_max_targets_are_drawn(shop):
    few = NeuralScorer(**{**FAST, "epochs": 1}, max_targets=300).fit(shop.past, shop.items, seed=0)
    many = NeuralScorer(**{**FAST, "epochs": 1}).fit(shop.past, shop.items, seed=0)
    one, other = (scorer.score(shop.cases) for scorer in (few, many))
    assert np.isfinite(one[np.isfinite(other)]).all()  # items outside the draw are known all the same
    assert np.nanmax(np.abs(one - other)) > 0.01


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"form": "linear"}, "form is 'linear'; it must be one of implicit, explicit"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must lie in \[0, 1\)"),
        ({"decay": -1.0}, "decay is -1.0"),
        ({"user_features": np.array([[np.inf]])}, "inf in row 0, column 0"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(DataError, match=named):
        NeuralScorer(**settings)


def test_nothing_to_learn_from():
    single = events_of([(0, 1, 0), (1, 2, 0)], 3)  # first events only: no history, no attributes
    with pytest.raises(DataError, match="found no event to learn from"):
        NeuralScorer().fit(single, items_of("abc"))
    with pytest.raises(DataError, match="found no event to learn from"):
        NeuralScorer(form="explicit").fit(events_of([(0, 1, 0), (0, 2, 1)], 3), items_of("abc"))


def test_a_handful_of_users_is_enough_to_run():
    past = events_of([(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)], 3)
    scorer = NeuralScorer(**FAST).fit(past, items_of("abc"), seed=0)
    scores = scorer.score(cases_of([[0]], [[0, 1, 2]]))
    assert scores[1] > scores[0]
    assert np.isnan(scores[2])


def test_not_fitted():
    with pytest.raises(NotFittedError, match="call fit or load first"):
        NeuralScorer().score(cases_of([[0]], [[0]]).with_candidates(Ragged.from_lists([[0]])))
