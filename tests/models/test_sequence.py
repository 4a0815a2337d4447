"""The sequence scorer: its rows, its loss and gradient, planted orders that only one of its nets can know, growth."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_rerank.models.collaborative.sequence import SequenceScorer
from llm_rerank.models.collaborative.sequence_networks import CatalogueSoftmax, NetworkSettings, SequenceNetwork
from llm_rerank.models.collaborative.sequence_rows import Context, Events, case_context, causal_rows, leave_one_out_rows
from llm_rerank.models.collaborative.sequence_tables import SequenceTables
from llm_rerank.models.collaborative.sequence_texts import CountedTexts
from llm_rerank.types import CatalogueScorer, DataError, GrowingScorer, Items, NotFittedError, StorageError
from tests.models.test_text_ease import ThemeEncoder
from tests.planted import cases_of, events_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, first_rate

SMALL = {"embedding_size": 16, "batch_size": 64, "epochs": 6, "learning_rate": 0.03}


@pytest.fixture(scope="module")
def shop():
    return planted_shop()


@pytest.fixture(scope="module")
def fitted(shop):
    return SequenceScorer(**SMALL).fit(shop.past, shop.items, seed=3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SequenceScorer(**SMALL),
        lambda: SequenceScorer(ThemeEncoder(), **SMALL),
        lambda: SequenceScorer(text=False, **SMALL),
    ],
    ids=["word counts", "encoder", "ids only"],
)
def test_suite(make, tmp_path):
    new_items = "known" if make().text else "unknown"
    scorer = check_scorer(make, tmp_path, quality_floor=0.9, new_items=new_items)
    assert isinstance(scorer, CatalogueScorer)
    assert isinstance(scorer, GrowingScorer)


@pytest.mark.parametrize("net", ["average", "attention", "leave_one_out"])
def test_each_net_alone_finds_the_theme(shop, net):
    scorer = SequenceScorer(nets=[net], **SMALL).fit(shop.past, shop.items, seed=0)
    assert first_rate(scorer.score(shop.cases), shop.cases) >= 0.9


# --- rows ---------------------------------------------------------------------------------------------------------


def events():
    """User 0: visits {0}, {1, 2}, {0, 3}; user 1: {4} alone; user 2: {1, 1}, twice the same item."""
    return Events.of(
        events_of(
            [(0, 0, 1), (0, 1, 2), (0, 2, 2), (0, 0, 5), (0, 3, 5), (1, 4, 3), (2, 1, 1), (2, 1, 4)],
            6,
            time_kind="time",
        )
    )


def described(rows):
    """One tuple a row: its targets, and what it reads as (item, age)."""
    context = rows.context()
    read = [
        sorted(
            zip(context.items[context.rows == row].tolist(), context.ages[context.rows == row].tolist(), strict=True)
        )
        for row in range(len(rows))
    ]
    return [(sorted(rows.targets[row].tolist()), read[row]) for row in range(len(rows))]


def test_causal_rows_by_hand():
    # the third visit brings item 3 only: item 0 is no longer new. Users 1 and 2 have nothing new after a visit
    assert described(causal_rows(events(), 10)) == [([1, 2], [(0, 1)]), ([3], [(0, 2), (1, 1), (2, 1)])]
    assert causal_rows(events(), 10).target_weights.tolist() == [0.5, 0.5, 1]
    assert described(causal_rows(events(), 2)) == [([1, 2], [(0, 1)]), ([3], [(1, 1), (2, 1)])]


def test_leave_one_out_rows_by_hand():
    # item 0 is bought again in the third visit, and must not be read where it is the target
    assert described(leave_one_out_rows(events(), 10)) == [
        ([0], [(1, 1), (2, 1), (3, 2)]),
        ([1], [(0, 1), (0, 1), (2, 0), (3, 1)]),
        ([2], [(0, 1), (0, 1), (1, 0), (3, 1)]),
        ([3], [(0, 0), (0, 2), (1, 1), (2, 1)]),
    ]
    # two events around the target, fewer at neither end
    assert [[item for item, _ in read] for _, read in described(leave_one_out_rows(events(), 2))] == [
        [1, 2],
        [0, 2],
        [0, 1],
        [0, 2],
    ]


def test_no_row_reads_its_target_and_none_is_empty():
    rng = np.random.default_rng(0)
    rows = [(user, item, time) for user, item, time in rng.integers(0, (30, 6, 9), (300, 3)).tolist()]
    packed = Events.of(events_of(rows, 6, time_kind="time"))
    for made in (causal_rows(packed, 5), leave_one_out_rows(packed, 5)):
        context = made.context()
        assert len(made) > 50
        assert (np.bincount(context.rows, minlength=len(made)) > 0).all()
        for row in range(len(made)):
            assert not set(context.items[context.rows == row]) & set(made.targets[row])
        part = np.array([7, 0, 7])
        assert described(made.take(part)) == [described(made)[row] for row in part]


def test_dislikes_are_not_read_and_are_no_targets():
    past = events_of([(0, 0, 1), (0, 1, 2, -1.0), (0, 2, 3), (0, 3, 4)], 4)
    rows = causal_rows(Events.of(past), 10)
    assert described(rows) == [([2], [(0, 2)]), ([3], [(0, 3), (2, 1)])]


def test_what_scoring_reads():
    cases = cases_of([[3, 9, 1, 1], [], [2, 0]], [[]] * 3, times=[[1, 5, 5, 8], [], [4, 6]])
    cases = replace(cases, history_weights=np.array([2.0, 1, 1, 1, 1, -1], dtype=np.float32))
    context = case_context(cases, np.array([True, True, True, True]), 2)
    assert context.items.tolist() == [1, 1, 2]  # 9 is unknown, 3 too old, 0 disliked
    assert context.rows.tolist() == [0, 0, 2]
    assert context.ages.tolist() == [2, 1, 2]  # the disliked event was a visit all the same
    assert context.n_rows == 3
    one = case_context(cases, np.array([True, False, False, True]), 2)
    assert (one.items.tolist(), one.ages.tolist()) == ([3], [3])
    assert one.log_weights == pytest.approx([math.log(2)])


# --- the loss -----------------------------------------------------------------------------------------------------


def loss_inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    biases = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    # row 0 has two targets; item 2 is a target twice
    return (
        users,
        items,
        biases,
        torch.tensor([0, 0, 1, 2, 3]),
        torch.tensor([2, 5, 2, 0, 1]),
        torch.tensor([0.5, 0.5, 1, 1, 1]),
    )


def obvious_loss(users, items, biases, rows, targets, weights):
    log_probabilities = torch.log_softmax(users @ items.T + biases, dim=1)
    return -(log_probabilities[rows, targets] * weights).sum() / len(users)


def test_loss_and_gradient_equal_the_obvious_ones():
    users, items, biases, rows, targets, weights = loss_inputs()
    weights = weights.double()
    ours = CatalogueSoftmax.apply(users, items, biases, rows, targets, weights)
    expected = obvious_loss(users, items, biases, rows, targets, weights)
    torch.testing.assert_close(ours, expected)
    for one, other in zip(
        torch.autograd.grad(3 * ours, (users, items, biases)),
        torch.autograd.grad(3 * expected, (users, items, biases)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_great_scores_do_not_overflow():
    users = torch.tensor([[200.0], [-200.0]])
    loss = CatalogueSoftmax.apply(
        users, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.ones(2)
    )
    assert float(loss) == pytest.approx(200)  # 0 for the first row, 400 for the second


# --- the network, and its twin in numpy ---------------------------------------------------------------------------


def random_network(attends, *, text_size=5):
    torch.manual_seed(4)
    settings = NetworkSettings(embedding_size=8, attends=attends, dropout=0.3, text_dropout=0.2)
    net = SequenceNetwork(torch.randn(7, text_size), settings)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return net.eval()


CONTEXT = Context(
    items=np.array([0, 3, 3, 6, 1]),
    rows=np.array([0, 0, 0, 1, 1]),
    ages=np.array([4, 1, 0, 2, 1], dtype=np.float32),
    log_weights=np.array([0, 0.7, 0, 0, -0.2], dtype=np.float32),
    n_rows=2,
)


def by_hand(arrays, vectors, row):
    """A row's user vector, event by event, in float64."""
    mine = CONTEXT.rows == row
    read, ages, weights = vectors[CONTEXT.items[mine]], CONTEXT.ages[mine], np.exp(CONTEXT.log_weights[mine])
    shares = weights * np.exp(-arrays["decay"] * ages)
    user = (shares[:, None] * read).sum(axis=0) / shares.sum()
    user /= np.linalg.norm(user)
    if "attention" in arrays:
        asked = np.array([user @ arrays["attention"] @ vector for vector in read])
        shares = weights * np.exp(asked - arrays["attention_decay"] * ages)
        user = (shares[:, None] * read).sum(axis=0) / shares.sum()
        user /= np.linalg.norm(user)
    return user * arrays["scale"]


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("text_size", [0, 5])
def test_network_tables_and_definition_agree(attends, text_size):
    net = random_network(attends, text_size=text_size)
    arrays, text = net.arrays(), net.text.numpy()
    vectors = text @ arrays["text_layer"] + arrays["ids"]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(float)
    expected = np.stack([by_hand(arrays, vectors, row) for row in range(2)])
    with torch.no_grad():
        of_network = net.item_vectors()
        np.testing.assert_allclose(of_network, vectors, atol=1e-5)
        np.testing.assert_allclose(net.user_vectors(of_network, CONTEXT), expected, atol=1e-4)
    tables = SequenceTables.of(arrays, np.ones(7, dtype=int), text)
    np.testing.assert_allclose(tables.users(CONTEXT), expected, atol=1e-4)
    scores = np.exp(expected @ vectors.T + arrays["biases"])
    fitted = np.array([0, 1, 2, 3, 4])  # 5 and 6 came later: they are measured against the same sum
    np.testing.assert_allclose(
        tables.probabilities(CONTEXT, fitted), scores / scores[:, fitted].sum(axis=1, keepdims=True), rtol=1e-4
    )


def test_an_item_nobody_took_has_the_bias_of_the_rarest():
    trained = {
        "ids": np.zeros((3, 2), dtype=np.float32),
        "biases": np.array([0.2, 0.4, 3.0], dtype=np.float32),
        "text_layer": np.eye(2, dtype=np.float32),
        "scale": np.float32(1),
        "decay": np.float32(0),
    }
    tables = SequenceTables.of(trained, np.array([1, 0, 1, 9]), np.ones((4, 2), dtype=np.float32))
    np.testing.assert_allclose(tables.biases, [0.2, 0.3, 0.4, 3.0])  # (0.2 + 0.4) / 2


def test_a_row_without_events_is_unknown_and_harms_no_other():
    net = random_network(attends=True)
    tables = SequenceTables.of(net.arrays(), np.ones(7, dtype=int), net.text.numpy())
    whole = tables.probabilities(CONTEXT, np.arange(7))
    gappy = replace(CONTEXT, rows=CONTEXT.rows * 2 + 1, n_rows=5)  # rows 1 and 3
    table = tables.probabilities(gappy, np.arange(7))
    np.testing.assert_array_equal(np.isnan(table).all(axis=1), [True, False, True, False, True])
    np.testing.assert_allclose(table[[1, 3]], whole, rtol=1e-6)


@pytest.mark.parametrize("attends", [False, True])
def test_a_step_down_the_gradient_lowers_the_loss_by_its_length(attends):
    net = random_network(attends).double()
    net.text = net.text.double()
    context = replace(CONTEXT, ages=CONTEXT.ages.astype(float), log_weights=CONTEXT.log_weights.astype(float))
    rows, targets, weights = torch.tensor([0, 1]), torch.tensor([2, 4]), torch.ones(2, dtype=torch.float64)

    def loss():
        vectors = net.item_vectors()
        return CatalogueSoftmax.apply(net.user_vectors(vectors, context), vectors, net.biases, rows, targets, weights)

    before = loss()
    before.backward()
    squares = sum(float((parameter.grad**2).sum()) for parameter in net.parameters())
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 1e-6 * parameter.grad
    # to first order the loss falls by step × |gradient|²
    with torch.no_grad():
        after = loss()
    assert float(before.detach() - after) == pytest.approx(1e-6 * squares, rel=1e-3)


# --- planted orders -----------------------------------------------------------------------------------------------


def chain(n_users=240, n_items=12, length=5, seed=0):
    """Everyone walks a ring of items from a random start: after item i always comes i + 1, whatever came before."""
    starts = np.random.default_rng(seed).integers(0, n_items, n_users)
    walks = (starts[:, None] + np.arange(length)) % n_items
    rows = [(user, item, time) for user, walk in enumerate(walks.tolist()) for time, item in enumerate(walk)]
    return events_of(rows, n_items)


@pytest.mark.parametrize("net", ["average", "attention"])
def test_the_next_item_of_a_ring_is_first(net):
    past = chain()
    scorer = SequenceScorer(nets=[net], text=False, **{**SMALL, "epochs": 40}).fit(past, items_of([""] * 12), seed=0)
    cases = cases_of([[(start + step) % 12 for step in range(4)] for start in range(12)], [[]] * 12)
    scores = scorer.score_catalogue(cases)
    scores[cases.history.row_of_value, cases.history.values] = -1  # what was had is not recommended
    np.testing.assert_array_equal(scores.argmax(axis=1), (np.arange(12) + 4) % 12)


def test_leave_one_out_looks_both_ways():
    past = chain()
    scorer = SequenceScorer(nets=["leave_one_out"], text=False, **{**SMALL, "epochs": 40})
    basket = cases_of([[3, 4, 6, 7]], [[]], times=[[1, 1, 1, 1]])
    scores = scorer.fit(past, items_of([""] * 12), seed=0).score_catalogue(basket)[0]
    scores[[3, 4, 6, 7]] = -1
    assert scores.argmax() == 5  # the hole in the middle of the walk: nothing comes nearer to all four


def test_probabilities_of_the_average_are_their_mean(shop, fitted):
    cases = shop.cases.take(np.arange(5))
    one_by_one = []
    for net in fitted.nets:
        alone = SequenceScorer(nets=[net], **SMALL).fit(shop.past, shop.items, seed=3)
        one_by_one.append(alone.score_catalogue(cases) ** 2)
    np.testing.assert_allclose(fitted.score_catalogue(cases) ** 2, np.mean(one_by_one, axis=0), rtol=1e-4)
    warm = np.setdiff1d(np.arange(len(shop.items)), shop.cold)
    np.testing.assert_allclose((fitted.score_catalogue(cases)[:, warm] ** 2).sum(axis=1), 1, rtol=1e-4)


def test_a_loved_item_weighs_more():
    scorer = SequenceScorer(text=False, **SMALL).fit(chain(), items_of([""] * 12), seed=0)
    cases = cases_of([[0, 6], [0, 6]], [[1], [1]])
    weights = cases.history_weights.copy()
    weights[0] = 9
    less, more = scorer.score(replace(cases, history_weights=weights))[::-1]
    assert more > less


# --- what a fit keeps and what it does not touch ------------------------------------------------------------------


def test_seeds(shop, fitted):
    again = SequenceScorer(**SMALL).fit(shop.past, shop.items, seed=3)
    np.testing.assert_array_equal(again.score(shop.cases), fitted.score(shop.cases))
    other = SequenceScorer(**SMALL).fit(shop.past, shop.items, seed=4)
    assert np.nanmax(np.abs(other.score(shop.cases) - fitted.score(shop.cases))) > 0.01


def test_the_random_state_of_the_caller_is_left_alone(shop):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    SequenceScorer(**{**SMALL, "epochs": 1}).fit(shop.past, shop.items, seed=5)
    torch.testing.assert_close(torch.rand(3), expected)


def test_user_ids_are_not_read(shop, fitted):
    other = replace(shop.past, user_ids=shop.past.user_ids[::-1].copy())
    again = SequenceScorer(**SMALL).fit(other, shop.items, seed=3)
    np.testing.assert_array_equal(again.score(shop.cases), fitted.score(shop.cases))


def test_loss_curves_are_kept_and_fall(shop, fitted, tmp_path):
    assert list(fitted.loss_curves) == ["average", "attention", "leave_one_out"]
    n_warm = len(shop.items) - len(shop.cold)
    for curve in fitted.loss_curves.values():
        assert len(curve) == SMALL["epochs"]
        assert curve[-1] < curve[0] - 0.3
        assert curve[-1] < math.log(n_warm)  # what an even guess costs
    fitted.save(tmp_path)
    loaded = SequenceScorer.load(tmp_path)
    for net, curve in fitted.loss_curves.items():
        np.testing.assert_array_equal(loaded.loss_curves[net], curve)


def test_loading_and_scoring_need_no_torch_and_change_nothing(shop, fitted, tmp_path):
    fitted.save(tmp_path)
    np.testing.assert_array_equal(SequenceScorer.load(tmp_path).score(shop.cases), fitted.score(shop.cases))
    code = (
        "import sys; from pathlib import Path\n"
        "from llm_rerank.models.collaborative.sequence import SequenceScorer\n"
        "from tests.planted import cases_of\n"
        f"scores = SequenceScorer.load(Path({str(tmp_path)!r})).score(cases_of([[1]], [[3, 4]]))\n"
        "print(*scores.tolist(), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    expected = fitted.score(cases_of([[1]], [[3, 4]]))
    np.testing.assert_allclose(np.array(printed[:2], dtype=float), expected, rtol=1e-6)
    assert printed[2] == "False"


def test_an_epoch_reads_no_more_cells_than_it_may(shop):
    full = SequenceScorer(**SMALL).fit(shop.past, shop.items, seed=3)
    few = SequenceScorer(**SMALL, most_cells=100 * 152).fit(shop.past, shop.items, seed=3)  # 100 rows of about 2,500
    assert few.loss_curves["average"][-1] > full.loss_curves["average"][-1] + 0.2


# --- unknown items, new items, new texts --------------------------------------------------------------------------


def test_items_nobody_took_are_scored_by_their_text(shop, fitted):
    users = [user for user in range(64) if shop.user_themes[user] in shop.item_themes[shop.cold]]
    cases = shop.cases.take(np.array(users))
    table = fitted.score_catalogue(cases)[:, shop.cold]
    assert np.isfinite(table).all()
    assert (shop.item_themes[shop.cold][table.argmax(axis=1)] == shop.user_themes[users]).mean() > 0.8
    ids_only = SequenceScorer(text=False, **SMALL).fit(shop.past, shop.items, seed=0)
    table = ids_only.score_catalogue(cases)
    assert np.isnan(table[:, shop.cold]).all()
    assert np.isfinite(np.delete(table, shop.cold, axis=1)).all()


def test_an_item_with_neither_text_nor_events_is_unknown(shop):
    texts = shop.items.texts.copy()
    texts[shop.cold[0]] = " "
    texts[0] = ""
    items = replace(shop.items, frame=shop.items.frame.assign(title=texts), texts=texts)
    scorer = SequenceScorer(**SMALL).fit(shop.past, items, seed=0)
    scores = scorer.score_catalogue(shop.cases.take(np.arange(3)))
    unknown = np.isnan(scores).all(axis=0)
    assert np.flatnonzero(unknown).tolist() == [shop.cold[0]]  # item 0 has events
    history = cases_of([[shop.cold[0]], [shop.cold[1]]], [[1], [1]])
    assert np.isnan(scorer.score(history)).tolist() == [True, False]  # a history of text alone can be read


def longer_shop(shop, text, title):
    """The planted shop with one item more."""
    frame = shop.items.frame
    row = frame.iloc[[0]].assign(item_id="new", title=title)
    texts = np.append(shop.items.texts, text)
    return Items(
        np.append(shop.items.ids, "new"), type(frame)({name: [*frame[name], *row[name]] for name in frame}), texts
    )


@pytest.mark.parametrize("encoder", [None, ThemeEncoder()], ids=["word counts", "encoder"])
def test_growing(shop, encoder, tmp_path):
    scorer = SequenceScorer(encoder, **SMALL).fit(shop.past, shop.items, seed=0)
    before = scorer.score_catalogue(shop.cases)
    n = len(shop.items)
    items = longer_shop(shop, "classic espresso machine. coffee", "classic espresso machine")
    grown = scorer.grown(items, np.array([n]))
    after = grown.score_catalogue(shop.cases)
    np.testing.assert_array_equal(scorer.score_catalogue(shop.cases), before)  # the old one is as it was
    np.testing.assert_allclose(after[:, :n], before, rtol=1e-6)
    assert np.isfinite(after[:, n]).all()
    of_coffee = shop.user_themes == 1
    assert after[of_coffee, n].mean() > 3 * after[~of_coffee, n].mean()
    # an item that nobody took scores as one of the fit's catalogue with the same text that nobody took either
    twin = int(shop.cold[0])
    twins = longer_shop(shop, shop.items.texts[twin], shop.items.frame["title"].iloc[twin])
    table = scorer.grown(twins, np.array([n])).score_catalogue(shop.cases)
    np.testing.assert_allclose(table[:, n], table[:, twin], rtol=1e-4)
    # a history of the new item alone is read by its text
    case = cases_of([[n]], [np.delete(np.arange(n), shop.cold)])
    best = case.candidates.values[np.argsort(-grown.score(case))[:5]]
    assert (shop.item_themes[best] == 1).all()
    # saved, loaded, and grown once more: texts are measured as in the fit
    grown.save(tmp_path)
    loaded = SequenceScorer.load(tmp_path)
    loaded.encoder = encoder
    np.testing.assert_array_equal(loaded.score(shop.cases), grown.score(shop.cases))
    once_more = loaded.grown(items, np.arange(n + 1)).score_catalogue(shop.cases)
    np.testing.assert_allclose(once_more, after, rtol=1e-4, atol=1e-6)  # reading all texts again changes nothing


def test_a_changed_text_counts_and_the_id_stays(shop, fitted):
    cold, warm = int(shop.cold[0]), int(shop.cases.history[0][0])
    texts = shop.items.texts.copy()
    titles = shop.items.frame["title"].to_numpy(object).copy()
    theme = (shop.item_themes[cold] + 1) % 8
    twin = next(code for code in np.flatnonzero(shop.item_themes == theme) if code not in shop.cold)
    for code in (cold, warm):
        texts[code], titles[code] = shop.items.texts[twin], shop.items.frame["title"].iloc[twin]
    items = replace(shop.items, frame=shop.items.frame.assign(title=titles), texts=texts)
    before, after = (
        fitted.score_catalogue(shop.cases),
        fitted.grown(items, np.array([cold, warm])).score_catalogue(shop.cases),
    )
    of_theme = shop.user_themes == theme
    assert after[of_theme, cold].mean() > 3 * before[of_theme, cold].mean()
    # an item of the fit is still itself: its text has moved, its id has not
    own = shop.user_themes == shop.item_themes[warm]
    assert after[own, warm].mean() > 1.5 * after[own, cold].mean()


def test_ids_only_grow_by_unknown_items(shop):
    scorer = SequenceScorer(text=False, **SMALL).fit(shop.past, shop.items, seed=0)
    grown = scorer.grown(longer_shop(shop, "a", "a"), np.array([len(shop.items)])).score_catalogue(shop.cases)
    assert np.isnan(grown[:, -1]).all()
    np.testing.assert_allclose(grown[:, :-1], scorer.score_catalogue(shop.cases), rtol=1e-6)


def test_a_loaded_scorer_asks_for_the_encoder_when_an_item_is_new(shop, tmp_path):
    SequenceScorer(ThemeEncoder(), **SMALL).fit(shop.past, shop.items, seed=0).save(tmp_path)
    loaded = SequenceScorer.load(tmp_path)
    with pytest.raises(StorageError, match="encoder of your own"):
        loaded.grown(longer_shop(shop, "a", "a"), np.array([len(shop.items)]))


def test_counted_texts_keep_the_similarity_of_counts():
    items = items_of(["red steel cup", "red steel cup", "blue rope", "red cup", "blue steel rope", "", "!"])
    counted, vectors = CountedTexts.fit(items, seed=0)
    np.testing.assert_allclose(counted.vectors(items, np.arange(7)), vectors, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 1, 0, 0], atol=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] == pytest.approx(1, abs=1e-5)
    assert cosines[0, 3] > 0.5 > cosines[0, 4] > cosines[0, 2]


# --- errors and small shops ---------------------------------------------------------------------------------------


def test_a_shop_of_single_baskets_has_one_net():
    past = events_of(
        [(user, item, 1) for user in range(20) for item in ((0, 1), (2, 3))[user % 2]], 4, time_kind="time"
    )
    scorer = SequenceScorer(text=False, **{**SMALL, "epochs": 30}).fit(past, items_of([""] * 4), seed=0)
    assert list(scorer.loss_curves) == ["leave_one_out"]  # no visit comes after another
    scores = scorer.score(cases_of([[0], [3]], [[1, 2, 3], [0, 1, 2]]))
    assert scores[0] > 2 * scores[1:3].max()
    assert scores[5] > 2 * scores[3:5].max()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"nets": ["transformer"]}, r"nets is \['transformer'\]; give one or more of average"),
        ({"nets": []}, r"nets is \[\]"),
        ({"nets": ["average", "average"]}, "each once"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must lie in \[0, 1\)"),
        ({"epochs": 0}, "epochs is 0; it must be above 0"),
        ({"encoder": ThemeEncoder(), "text": False}, "encoder is given and text is False"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(DataError, match=named):
        SequenceScorer(**settings)


def test_errors():
    single = events_of([(0, 1, 0), (1, 2, 0), (2, 1, 0), (2, 1, 5)], 3)
    with pytest.raises(DataError, match="no user liked a second item"):
        SequenceScorer().fit(single, items_of("abc"))
    with pytest.raises(DataError, match="none of the 3 items has a text.*or leave the sequence scorer"):
        SequenceScorer().fit(chain(n_items=3, length=2), items_of(["", "", " "]))
    with pytest.raises(NotFittedError, match="call fit or load first"):
        SequenceScorer().score(cases_of([[0]], [[0]]))
