"""Diversity: each step against a slow twin or arithmetic by hand, and the whole through the reranker's doors."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.config import DiversityConfig, RerankerConfig
from llm_rerank.data.frames import id_codes
from llm_rerank.metrics import intra_list_distance
from llm_rerank.models import scoring
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.recommendation import deciding
from llm_rerank.recommendation import item_groups as item_groups_module
from llm_rerank.recommendation.answering import Question, answer_questions
from llm_rerank.recommendation.candidates import ranks_in_row
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.diversity import cap_groups, diversify, greedy_mmr
from llm_rerank.recommendation.item_groups import cluster_items, group_column, item_groups, item_vectors
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError, Ragged

# ------------------------------------------------------------------ the slow twin


def slow_list(codes, scores, ranks, vectors, groups, config):
    """One list, one step a line: positions of its candidates in the new order."""
    known = [place for place in np.argsort(ranks) if not math.isnan(scores[place])]
    unknown = [place for place in np.argsort(ranks) if math.isnan(scores[place])]
    head, rest, over, taken = [], [], set(), {}
    for place in known:
        group = groups[codes[place]]
        if config.max_per_group is not None and group >= 0 and taken.get(group, 0) >= config.max_per_group:
            over.add(place)
        (rest if place in over or len(head) == config.depth else head).append(place)
        taken[group] = taken.get(group, 0) + 1
    listed = head + rest
    pool, behind = listed[: config.depth], listed[config.depth :]
    if config.strength > 0:
        pool = slow_mmr([codes[place] for place in pool], pool, over, vectors, config.strength)
    return pool + behind + unknown


def slow_mmr(codes, pool, over, vectors, strength):
    discounts = [1 / math.log2(rank + 1) for rank in range(1, len(pool) + 1)]
    relevance = {place: z(value, discounts) for place, value in zip(pool, discounts, strict=True)}
    says = [math.isfinite(sum(vectors[code])) and any(vectors[code] != 0) for code in codes]
    cosines = {}
    for i in range(len(pool)):
        for j in range(len(pool)):
            if i != j and says[i] and says[j]:
                a, b = vectors[codes[i]].astype(float), vectors[codes[j]].astype(float)
                cosines[pool[i], pool[j]] = a @ b / math.sqrt((a @ a) * (b @ b))
    every = list(cosines.values())
    chosen, left = [], list(pool)
    while left:
        open_now = [place for place in left if place not in over] or left

        def value(place):
            known = [z(cosines[place, other], every) if (place, other) in cosines else 0.0 for other in chosen]
            return (1 - strength) * relevance[place] - (strength * max(known) if chosen else 0.0)

        best = max(open_now, key=lambda place: (round(value(place), 6), -pool.index(place)))
        chosen.append(best)
        left.remove(best)
    return chosen


def z(value, values):
    """Standard score; 0 where all are equal."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((other - mean) ** 2 for other in values) / len(values))
    return (value - mean) / deviation if deviation > 1e-6 else 0.0


def random_batch(seed, n_lists=6, longest=9, n_items=30):
    """Lists of 0 to ``longest`` candidates, some unknown; vectors, some of nothing; few groups, some unknown."""
    rng = np.random.default_rng(seed)
    rows = Ragged.from_lists([rng.choice(n_items, rng.integers(0, longest + 1), replace=False) for _ in range(n_lists)])
    scores = rng.normal(size=len(rows.values))
    scores[rng.random(len(scores)) < 0.1] = np.nan
    vectors = rng.normal(size=(n_items, 5)).astype(np.float32)
    vectors[3:6], vectors[6] = 0, np.nan
    return rows, scores, ranks_in_row(scores, rows), vectors, rng.integers(-1, 4, n_items)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    strength=st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.81, 1.0]),
    cap=st.sampled_from([None, 1, 2]),
    depth=st.sampled_from([1, 3, 5, 50]),
)
def test_many_lists_at_once_equal_the_slow_twin(seed, strength, cap, depth):
    rows, scores, ranks, vectors, groups = random_batch(seed)
    config = DiversityConfig(strength, max_per_group=cap, depth=depth)
    found = diversify(scores, ranks, rows, vectors, groups, config).ranks
    for row in range(len(rows)):
        inside = slice(rows.offsets[row], rows.offsets[row + 1])
        order = slow_list(rows[row], scores[inside], ranks[inside], vectors, groups, config)
        assert np.argsort(found[inside]).tolist() == order


def test_blocks_of_lists_do_not_change_anything(monkeypatch):
    rows, scores, ranks, vectors, groups = random_batch(1, n_lists=200, longest=12)
    whole = diversify(scores, ranks, rows, vectors, groups, DiversityConfig(0.4)).ranks
    monkeypatch.setattr("llm_rerank.recommendation.diversity.BLOCK_CELLS", 12 * 12 * 7)
    np.testing.assert_array_equal(diversify(scores, ranks, rows, vectors, groups, DiversityConfig(0.4)).ranks, whole)


def test_lists_without_candidates_are_no_error():
    vectors, groups, seeds = (
        np.ones((3, 2), dtype=np.float32),
        np.zeros(3, dtype=np.int64),
        np.zeros(2, dtype=np.uint64),
    )
    config = DiversityConfig(0.5, 1, exploration_slots=2)
    nothing = np.empty(0, dtype=np.int64)
    for rows in (Ragged.empty(2), Ragged.empty(0)):
        found = diversify(np.empty(0), nothing, rows, vectors, groups, config, seeds[: len(rows)])
        assert found.ranks.shape == found.propensities.shape == (0,)


def test_mmr_by_hand():
    # twins 0 and 1, a stranger 2; strength ½. First 0 (relevance 2). Then 1: ½·1 − ½·1 = 0; 2: ½·0.5 − ½·0 = .25
    similarity = np.array([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    relevance, available = np.array([[2.0, 1.0, 0.5]]), np.ones((1, 3), dtype=bool)
    assert greedy_mmr(relevance, similarity, available, 0.5).tolist() == [[0, 2, 1]]
    assert greedy_mmr(relevance, similarity, available, 0.0).tolist() == [[0, 1, 2]]
    assert greedy_mmr(relevance, similarity, available, 0.5, np.array([[False, False, True]])).tolist() == [[0, 1, 2]]


def test_a_strength_means_the_same_where_all_texts_are_alike():
    # with a coordinate that all share, every cosine c becomes .1 c + .9: the same shop, described in near equal words
    rows, scores, ranks, vectors, _ = random_batch(3, n_lists=40)
    vectors[3:6] = np.nan
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = np.column_stack([np.sqrt(0.1) * unit, np.full(len(unit), np.sqrt(0.9), dtype=np.float32)])
    changed = 0
    for strength in (0.2, 0.5, 0.8):
        plain, compressed = (
            diversify(scores, ranks, rows, v, None, DiversityConfig(strength)).ranks for v in (unit, alike)
        )
        np.testing.assert_array_equal(plain, compressed)
        changed += (plain != ranks).sum()
    assert changed > 100


# ------------------------------------------------------------------ caps


def test_caps_by_hand():
    rows = Ragged.from_lists([[0, 1, 2, 3, 4, 5], [6, 7]])
    groups = np.array([8, 8, 8, -1, 9, -1, 8, 8])
    everything = np.ones(8, dtype=bool)
    ranks, over = cap_groups(np.array([1, 2, 3, 4, 5, 6, 2, 1]), rows, everything, groups, 1, depth=3)
    # list 1: the head is 0, 3 and 4 (one of group 8, one without group, one of 9); then 1, 2, 5 in their order
    assert ranks.tolist() == [1, 4, 5, 2, 3, 6, 2, 1]
    assert over.tolist() == [False, True, True, False, False, False, True, False]
    # a head of 2: what would have been third is behind what is over the cap but stood before it
    assert cap_groups(np.arange(1, 7), Ragged.from_lists([[0] * 6]), everything[:6], groups[:6], 1, 2)[0].tolist() == [
        1, 3, 4, 2, 5, 6,
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), cap=st.integers(1, 3), depth=st.integers(1, 12))
def test_caps_hold_lose_nothing_and_keep_the_order(seed, cap, depth):
    rows, scores, ranks, _, groups = random_batch(seed, longest=20)
    known = ~np.isnan(scores)
    of_candidate = np.where(known, groups[rows.values], -1)
    capped, over = cap_groups(ranks, rows, known, of_candidate, cap, depth)
    for row in range(len(rows)):
        inside = np.arange(rows.offsets[row], rows.offsets[row + 1])
        order = inside[np.argsort(capped[inside])]
        assert sorted(capped[inside]) == list(range(1, len(inside) + 1))
        head = order[:depth]
        admitted = head[~over[head] & known[head]]
        sizes = pd.Series(of_candidate[admitted]).loc[lambda g: g >= 0].value_counts()
        assert (sizes <= cap).all()
        if over[head].any():  # then nothing else was left to fill the head with
            assert (~over & known)[inside].sum() == len(admitted)
        assert (np.diff(ranks[admitted]) > 0).all()
        behind = order[depth:][known[order[depth:]]]
        assert (np.diff(ranks[behind]) > 0).all()
        assert not known[order[known[inside].sum() :]].any()


# ------------------------------------------------------------------ groups and vectors


class LetterEncoder:
    """Texts as counts of letters, of unit length."""

    embedding_size = 26
    fingerprint = "letters"

    def encode(self, inputs):
        letters = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in inputs], dtype=np.float32)
        return letters / np.maximum(np.linalg.norm(letters, axis=1, keepdims=True), 1e-6)


@pytest.fixture(scope="module")
def semantic(shop):
    """The text component on the shop's texts."""
    from llm_rerank.data.rendering import Renderer
    from llm_rerank.data.schema import validate_interactions, validate_items
    from llm_rerank.types import DataReport

    items = validate_items(shop[1], report=DataReport())
    past = validate_interactions(shop[0], items, report=DataReport())
    scorer = SemanticScorer(LetterEncoder()).fit(past, Renderer().render_items(items), seed=0)
    return Component(scorer, "semantic", True, True, {})


def test_vectors_are_of_texts_first_then_of_behaviour_else_an_error_names_the_remedy(fitted, semantic):
    als = next(component for component in fitted.components if component.name == "als")
    codes = np.array([3, 0])
    np.testing.assert_array_equal(item_vectors([als, semantic], codes), semantic.scorer.item_vectors(codes))
    np.testing.assert_array_equal(item_vectors(fitted.components, codes), als.scorer.item_vectors(codes))
    assert als.scorer.item_vectors(codes).shape != semantic.scorer.item_vectors(codes).shape
    others = [component for component in fitted.components if component.name != "als"]
    with pytest.raises(
        DataError, match=r"no component has them \(there are .*item_knn.*fit with an encoder or with als"
    ):
        item_vectors(others, codes)


def test_vectors_of_texts_are_those_of_the_encoder_whitened_or_not(semantic, fitted):
    """Whitening makes of ten like texts ten strangers; what is compared are the texts."""
    items = fitted._fit_result().items
    texts = items.with_texts([*items.texts[:-1], ""])
    scorer = SemanticScorer(LetterEncoder()).fit(fitted._data().events, texts, seed=0)
    codes = np.arange(len(items))[::-1]
    expected = LetterEncoder().encode(list(texts.texts[codes]))
    np.testing.assert_allclose(scorer.item_vectors(codes), expected, atol=1e-4)
    assert (scorer.item_vectors(codes)[0] == 0).all()
    plain = SemanticScorer(LetterEncoder(), whiten=False).fit(fitted._data().events, texts, seed=0)
    np.testing.assert_allclose(plain.item_vectors(codes), expected, atol=1e-6)


def blobs(n=90):
    rng = np.random.default_rng(5)
    centres = np.eye(3, 8)
    vectors = centres[np.arange(n) % 3] + 0.05 * rng.normal(size=(n, 8))
    return (vectors * rng.uniform(0.1, 9, size=(n, 1))).astype(np.float32)  # of unlike length: only the angle counts


def test_clusters_are_those_that_were_planted(monkeypatch):
    vectors = blobs()
    vectors[7], vectors[8] = 0, np.nan
    says = np.setdiff1d(np.arange(90), [7, 8])
    for _ in range(2):  # the second time from a sample of the items
        groups = cluster_items(vectors, 3, seed=0)
        assert groups[[7, 8]].tolist() == [-1, -1]
        assert len({(place % 3, groups[place]) for place in says}) == 3
        np.testing.assert_array_equal(groups, cluster_items(vectors, 3, seed=0))
        monkeypatch.setattr(item_groups_module, "MOST_ITEMS_FOR_CLUSTERS", 40)
    assert set(cluster_items(vectors[:5], 50, seed=0)) == {0, 1, 2, 3, 4}
    assert cluster_items(np.zeros((4, 2), dtype=np.float32), 2, seed=0).tolist() == [-1] * 4


def test_groups_of_a_column_leave_the_unknown_alone(fitted):
    items = fitted._fit_result().items
    frame = items.frame.assign(categories="a > b", shelf=np.nan)
    frame.loc[frame.index[:4], "shelf"] = [7.0, 7.0, 8.0, np.nan]
    frame.loc[frame.index[:4], "brand"] = ["x", "", " ", "x"]
    changed = replace(items, frame=frame)
    codes = np.array([3, 0, 1, 2, 1])

    def groups(name):
        return item_groups([], changed, DiversityConfig(max_per_group=1, group_by=name), codes, 0).tolist()

    assert groups("brand") == [0, 0, -1, -1, -1]
    assert groups("shelf") == [-1, 0, 0, 1, 0]
    assert groups("category") == [0, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"group_by is 'colour', which is no column .* use 'clusters' or one of title"):
        group_column(items, DiversityConfig(group_by="colour"))


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": 1.2}, "diversity strength is 1.2; it must be a number from 0"),
        ({"strength": True}, "diversity strength is True"),
        ({"strength": float("nan")}, "diversity strength is nan"),
        ({"max_per_group": 0}, "max_per_group is 0; it must be a whole number of at least 1"),
        ({"exploration_slots": -1}, "exploration_slots is -1"),
        ({"exploration_slots": 6, "depth": 5}, "exploration_slots is 6 and depth 5; there can be no more"),
        ({"n_clusters": 1}, "n_clusters is 1"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"group_by": " "}, "group_by is ' '"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        DiversityConfig(**values)


@pytest.mark.parametrize("value", [-0.1, 2, "0.5", None])
def test_a_plain_diversity_is_a_number_from_0_to_1(value):
    with pytest.raises(DataError, match="diversity is"):
        RerankerConfig(diversity=value)


@pytest.mark.parametrize("diversity", [0.0, 0.25, DiversityConfig(0.5, 2, "brand", exploration_slots=3, depth=20)])
def test_settings_go_through_json(diversity):
    config = RerankerConfig(diversity=diversity)
    again = RerankerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.diversity_settings == (DiversityConfig(diversity) if isinstance(diversity, float) else diversity)


# ------------------------------------------------------------------ through the doors


@pytest.fixture(scope="module")
def asked(shop):
    items = ["nowhere", *shop[1]["item_id"], shop[1]["item_id"][3]]
    users = ("u0", "u1", "u9", "newcomer")
    lists = pd.concat([pd.DataFrame({"user_id": user, "item_id": items}) for user in users], ignore_index=True)
    return lists.assign(place=range(len(lists)))


@pytest.fixture
def diverse(fitted, monkeypatch):
    """Ask the fitted reranker as if its diversity were another."""

    def change(diversity):
        monkeypatch.setattr(fitted, "config", replace(fitted.config, diversity=diversity))
        return fitted

    return change


def test_at_0_the_result_is_the_same_to_the_byte(fitted, diverse, asked):
    plain, found = fitted.rerank(asked), fitted.recommend(k=20)
    assert "propensity" not in plain
    # by score alone, ties in input order: what the ranks were before there was diversity
    by_score = plain.sort_values("score", ascending=False, kind="stable", na_position="last")
    assert (by_score.groupby("user_id")["rank"].diff().dropna() > 0).all()
    for nothing in (0, 0.0, DiversityConfig(), DiversityConfig(group_by="colour", exploration_seed=9)):
        changed = diverse(nothing)
        assert changed.rerank(asked).to_csv(index=False).encode() == plain.to_csv(index=False).encode()
        pd.testing.assert_frame_equal(changed.rerank(asked), plain, check_exact=True)
        pd.testing.assert_frame_equal(changed.recommend(k=20), found, check_exact=True)


def by_place(result):
    return result.set_index("place").sort_index()


@pytest.mark.parametrize(
    "diversity", [0.6, DiversityConfig(max_per_group=1, n_clusters=6), DiversityConfig(0.6, 2, "brand")]
)
def test_only_the_order_changes(fitted, diverse, asked, diversity):
    plain, changed = fitted.rerank(asked), diverse(diversity).rerank(asked)
    assert list(changed.columns) == list(plain.columns)
    pd.testing.assert_frame_equal(
        by_place(changed).drop(columns="rank"), by_place(plain).drop(columns="rank"), check_exact=True
    )
    assert (by_place(changed)["rank"] != by_place(plain)["rank"]).mean() > 0.1
    for _, rows in changed.groupby("user_id"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert rows["item_id"].iloc[-1] == "nowhere"  # no score: last
    assert 0 < plain["kept"].mean() < 1
    top = changed.groupby("user_id").head(5).reset_index(drop=True)
    pd.testing.assert_frame_equal(diverse(diversity).rerank(asked, k=5), top)


def test_lists_get_more_varied_with_strength(fitted, diverse):
    items = fitted._fit_result().items
    vectors = item_vectors(fitted.components, np.arange(len(items)))
    distances, hits = [], []
    for strength in (0.0, 0.3, 0.6, 1.0):
        result = diverse(strength).recommend([f"u{i}" for i in range(100)], k=10)
        lists = Ragged.from_lengths(id_codes(result["item_id"], items.ids), np.full(100, 10))
        distances.append(intra_list_distance(lists, vectors, 10).mean())
        hits.append(result["score"].mean())
    assert (np.diff(distances) > 0.005).all()
    assert (np.diff(hits) < 0).all()


def test_a_cap_by_brand_holds_in_rerank_and_recommend(diverse, shop, asked):
    brands = shop[1].set_index("item_id")["brand"]  # 8 of them
    capped = diverse(DiversityConfig(max_per_group=2, group_by="brand"))
    for result in (capped.rerank(asked, k=16), capped.recommend(["u0", "u5", "u77"], k=16)):
        counts = result["item_id"].map(brands).groupby(result["user_id"]).value_counts()
        assert len(counts) == 8 * result["user_id"].nunique()
        assert (counts == 2).all()
    with pytest.raises(DataError, match="group_by is 'colour'"):
        diverse(DiversityConfig(max_per_group=2, group_by="colour")).rerank(asked)


def test_propensities_are_logged_with_random_slots_only(diverse, asked):
    config = DiversityConfig(0.3, exploration_slots=2, depth=10)
    result = diverse(config).rerank(asked)
    assert list(result.columns)[:7] == ["user_id", "item_id", "rank", "score", "probability", "kept", "propensity"]
    quiet = by_place(diverse(replace(config, exploration_slots=0)).rerank(asked))
    moved = by_place(result)["rank"] != quiet["rank"]
    assert moved.groupby(quiet["user_id"]).any().all()
    n = len(asked) // 4 - 1  # known candidates of a user
    assert (result.loc[result["rank"] <= 10, "propensity"] >= 2 / (10 * n) - 1e-7).all()
    assert (result.loc[result["item_id"] == "nowhere", "propensity"] == 1).all()
    # the same question again, users in another order, is the same page; another seed is another
    turned = asked.iloc[::-1].sort_values("place", key=lambda place: -(place // (n + 1)), kind="stable")
    again = diverse(config).rerank(
        pd.concat([turned[turned["user_id"] == user].sort_values("place") for user in ("u9", "u1")])
    )
    columns = ["rank", "propensity"]
    expected = by_place(result[result["user_id"].isin(["u1", "u9"])])
    pd.testing.assert_frame_equal(by_place(again)[columns], expected[columns], check_exact=True)
    other = diverse(replace(config, exploration_seed=1)).rerank(asked)
    assert (by_place(other)["rank"] != by_place(result)["rank"]).any()


def test_each_newcomer_draws_a_list_of_their_own_in_one_call_in_batches_and_alone(diverse, monkeypatch):
    reranker = diverse(DiversityConfig(exploration_slots=5, depth=20))
    users = [f"new {number}" for number in range(300)]
    lists = reranker.recommend(users, k=20).groupby("user_id", sort=False)["item_id"].agg(list)
    assert len(set(map(tuple, lists))) == 300
    monkeypatch.setattr(scoring, "BLOCK_CELLS", 50 * len(reranker.saved.fitted.items))
    monkeypatch.setattr(deciding, "MOST_TOGETHER", 100)
    assert reranker.recommend(users, k=20).groupby("user_id", sort=False)["item_id"].agg(list).equals(lists)
    answers = answer_questions(reranker, [Question(user, k=20) for user in users[:20]])
    assert [answer.item_ids for answer in answers] == lists[:20].tolist()


def test_a_saved_reranker_orders_alike(fitted, diverse, shop, asked, tmp_path):
    config = DiversityConfig(0.3, max_per_group=2, n_clusters=5, exploration_slots=1)
    expected = diverse(config).rerank(asked)
    saved = replace(fitted._data(), config=fitted.config)
    keeper = Reranker(fitted.config, verbose=False)
    keeper._adopt(saved)
    keeper.save(tmp_path / "model")
    loaded = Reranker.load(tmp_path / "model", verbose=False)
    assert loaded.config.diversity == config
    pd.testing.assert_frame_equal(loaded.rerank(asked), expected)
    np.testing.assert_array_equal(
        item_groups(loaded.components, loaded._fit_result().items, config, np.arange(99), 0),
        item_groups(fitted.components, fitted._fit_result().items, config, np.arange(99), 0),
    )


def test_an_explanation_reads_the_score_alone(fitted, diverse, shop):
    item = shop[1]["item_id"][4]
    plain = fitted.explain("u0", item)
    for diversity in (1.0, DiversityConfig(1.0, 1, "brand", exploration_slots=3)):
        assert str(diverse(diversity).explain("u0", item)) == str(plain)


def test_no_vectors_is_an_error_but_for_lists_of_one(diverse, monkeypatch, asked):
    reranker = diverse(0.5)
    result = reranker._fit_result()
    without = replace(result, components=tuple(c for c in result.components if c.name != "als"))
    monkeypatch.setattr(reranker, "_saved", replace(reranker._data(), fitted=without))
    with pytest.raises(DataError, match="no component has them"):
        reranker.rerank(asked)
    assert reranker.rerank(asked.iloc[[5]])["rank"].tolist() == [1]


def test_the_command_line_takes_a_number_or_settings(fitted, diverse, shop, asked, tmp_path):
    fitted.save(tmp_path / "model")
    asked.to_csv(tmp_path / "candidates.csv", index=False)

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    for words, diversity in (
        ("0.7", 0.7),
        ("strength=0.2,max_per_group=2,group_by=brand", DiversityConfig(0.2, 2, "brand")),
    ):
        result = run("rerank", tmp_path / "model", tmp_path / "candidates.csv", "--diversity", words)
        assert result.exit_code == 0, result.output
        assert result.stdout == diverse(diversity).rerank(asked).to_csv(index=False)
        result = run("recommend", tmp_path / "model", "u0", "u3", "--diversity", words)
        assert result.stdout == diverse(diversity).recommend(["u0", "u3"]).to_csv(index=False)
    for words, message in (
        ("much", "--diversity is 'much'; write a number from 0 to 1"),
        ("1.5", "diversity strength is 1.5"),
        ("depth=few", "--diversity is 'depth=few'"),
        ("cap=3", "--diversity names 'cap'; known settings: strength"),
    ):
        result = run("recommend", tmp_path / "model", "u0", "--diversity", words)
        assert result.exit_code == 2
        assert message in result.output
