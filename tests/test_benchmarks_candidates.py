"""The benchmarks of missed targets and of candidate unions: arithmetic by hand, and both on the bundled shop."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from benchmarks import candidates, missed_targets
from benchmarks._candidate_sources import ABSENT, Pool, cheapest, greedy_quotas, nearest, pool_of, round_robin
from benchmarks._common import fitted_on
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import hold_out
from llm_rerank.models.collaborative.popularity import Popularity
from llm_rerank.types import Ragged


@pytest.fixture(scope="module")
def arguments(smaller_sample: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Fit most of the bundled shop once, without encoder and nets; what a run on that fit is told."""
    folder = tmp_path_factory.mktemp("fits") / "sample"
    trial = hold_out(load_dataset("sample", smaller_sample[-1]))
    fitted_on(trial, RerankerConfig(encoder=None, sequence="off", cross_encoder="off"), folder)
    return [*smaller_sample, "--model", str(folder)]


# ------------------------------------------------------------------ missed targets


def test_ranks_of_targets_by_hand() -> None:
    shown, targets = Ragged.from_lists([[4, 2, 0], [1], []]), Ragged.from_lists([[0, 3], [1, 4], [2]])
    assert missed_targets.ranks_of(shown, targets, 5).tolist() == [3, 0, 1, 0, 0]


def test_the_first_rule_that_holds_gives_the_class() -> None:
    rules = {"a": np.array([True, False, False]), "b": np.array([True, True, False])}
    assert missed_targets.classify(rules, ("a", "b", "none")).tolist() == [0, 1, 2]


def test_values_are_the_same_whatever_their_case_and_empty_ones_are_not() -> None:
    same = missed_targets.same_value(pd.Series(["Acme", "acme ", "", "", "Other"]))
    assert same.astype(int).tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]


def test_links_and_how_common_they_are_by_hand() -> None:
    # item 0 is linked with 1 and 2. A user had 0 and 1, so 2, 3, 4 are left, of which one is linked; another had 3
    relation = np.zeros((5, 5), dtype=np.float32)
    relation[0, [1, 2]] = relation[[1, 2], 0] = 1
    history = csr_matrix(np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=np.float32))
    found = missed_targets.linked(history, relation, Ragged.from_lists([[2, 4], [0]]), Ragged.from_lists([[0, 1], [3]]))
    assert found.found.tolist() == [True, False, False]
    assert found.share == pytest.approx([1 / 3, 1 / 3, 0])


def test_solved_targets_open_the_list_or_end_it() -> None:
    hits = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    n_solved = np.array([1, 6, 0])
    top = missed_targets.solved_hits(hits, n_solved, first=True)
    assert top.astype(int).tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    end = missed_targets.solved_hits(hits, n_solved, first=False)
    assert end.astype(int).tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_share_is_drawn_by_user() -> None:
    # 100 users with ten misses each: a user's are all of one kind, so the share varies as that of 100 draws
    rows, chosen = np.repeat(np.arange(100), 10), np.repeat(np.arange(100) % 2 == 0, 10)
    low, high = missed_targets.share_interval(rows, chosen, 120, seed=0)
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.02)


def test_every_miss_has_one_place_and_one_evidence_and_no_title_is_written(
    arguments: list[str], tmp_path: Path, capsys
) -> None:  # noqa: ANN001
    out = tmp_path / "missed.json"
    report = missed_targets.main([*arguments, "--out", str(out), "--show", "3"])
    n = report["n_missed"]
    assert sum(row["n"] for row in report["places"].values()) == n
    assert sum(row["n"] for row in report["evidence"].values()) == n
    for name, row in report["needed"].items():
        assert sum(row.values()) == report["evidence"][name]["n"]
    oracle = list(report["oracle"].values())
    assert oracle[0]["ndcg@10"] <= oracle[1]["ndcg@10 at the end"] <= oracle[1]["ndcg@10 at the top"]
    assert [row["hr@10"] for row in oracle] == sorted(row["hr@10"] for row in oracle)
    printed = capsys.readouterr().out
    titles = load_dataset("sample").items["title"]
    assert sum(title in printed for title in titles) >= 3
    assert not any(title in json.dumps(json.loads(out.read_text()), ensure_ascii=False) for title in titles)


# ------------------------------------------------------------------ candidates


def test_a_pool_knows_where_each_source_lists_an_item() -> None:
    sources = {"a": Ragged.from_lists([[3, 1], [0]]), "b": Ragged.from_lists([[1, 2], []])}
    pool = pool_of(sources, Ragged.from_lists([[2], [4]]), 5, seed=0)
    found = {
        (row, code): ranks
        for row, code, ranks in zip(
            pool.items.row_of_value.tolist(), pool.items.values.tolist(), pool.ranks.tolist(), strict=True
        )
    }
    no = int(ABSENT)
    assert found == {(0, 3): [0, no], (0, 1): [1, 0], (0, 2): [no, 1], (1, 0): [0, no]}
    assert pool.items.values[pool.hits].tolist() == [2]
    assert sorted(pool.dither.tolist()) == [0, 0.5]


def test_quotas_are_stretched_to_a_length_and_a_part_of_an_item_goes_to_a_part_of_the_users() -> None:
    # one source of ten items for four users: 2.5 items each is two for two of them and three for the others
    items = Ragged.from_lists([range(10)] * 4)
    ranks = np.tile(np.arange(10, dtype=np.int16), 4)[:, None]
    pool = Pool(("a",), items, ranks, np.zeros(40, dtype=bool), np.array([0.5, 0, 0.75, 0.25]))
    taken = cheapest(pool.needed({"a": 1.0}), 10)
    assert np.bincount(items.row_of_value[taken]).tolist() == [3, 2, 3, 2]
    assert (pool.ranks[taken, 0] <= 2).all()
    # twice the quota needs half the stretch, so the same items are taken
    assert (cheapest(pool.needed({"a": 2.0}), 10) == taken).all()
    assert cheapest(pool.needed({"a": 0.0}), 10).sum() == 0


def test_greedy_quotas_take_what_adds_most_for_each_new_item() -> None:
    # source 0 holds a hit in its first block of two, then nothing; source 1 repeats that block, then has two hits
    blocks = np.array([[0, 0], [0, 0], [1, -1], [1, -1], [-1, 1], [-1, 1]])
    worth = np.array([1.0, 0, 0, 0, 1, 1])
    assert greedy_quotas(blocks, worth, 2).tolist() == [1, 0]
    assert greedy_quotas(blocks, worth, 4).tolist() == [1, 2]  # through the repeated block, which costs nothing
    assert greedy_quotas(blocks, worth, 6).tolist() == [2, 2]
    # the second source's hit is held by the first one's block: the third, which alone would be worth less, adds more
    blocks = np.array([[0, 0, -1], [0, -1, -1], [-1, 0, -1], [-1, -1, 0], [-1, -1, 0]])
    assert greedy_quotas(blocks, np.array([1.0, 0, 0, 0.8, 0]), 4).tolist() == [1, 0, 1]


def test_round_robin_goes_from_the_newest_and_leaves_out_seen_and_repeats() -> None:
    neighbours = Ragged.from_lists([[2, 3, 4], [3, 5, 0], [], [], [], []])
    history, seen = Ragged.from_lists([[0, 1], [2]]), Ragged.from_lists([[0, 1], [2]])
    found = round_robin(history, neighbours, seen, 6)
    assert [found[row].tolist() for row in range(2)] == [[3, 2, 5, 4], []]


def test_the_nearest_items_leave_out_the_item_and_what_has_no_score() -> None:
    scorer = Popularity()
    scorer._counts = np.array([5, 0, 3, 9])
    assert [nearest(scorer, 4)[row].tolist() for row in range(4)] == [[3, 2], [3, 0, 2], [3, 0], [0, 2]]


def test_unions_of_most_of_the_bundled_shop_have_equal_length(arguments: list[str]) -> None:
    report = candidates.main([*arguments, "--lengths", "40", "120", "--per-source", "100", "20"])
    for n, unions in report["lengths"].items():
        assert {
            "equal",
            "blend",
            "learned",
            "learned, all",
            "equal, without als",
            "equal, item_knn without padding",
        } <= set(unions)
        for name, union in unions.items():
            assert union["mean_length"] == pytest.approx(int(n), rel=0.01), name
    small, large = (report["lengths"][n] for n in ("40", "120"))
    for name in ("equal", "blend", "learned"):
        assert small[name]["recall"]["mean"] < large[name]["recall"]["mean"]
    # of one source's items the first are the best: the union of several at equal length need not beat it, popularity is
    assert small["equal"]["recall"]["mean"] > small["recent_popularity alone"]["recall"]["mean"]
    for union in small.values():
        assert len(union["quotas"] or []) in (0, 2)
    fits = report["fits"]
    assert fits["20"]["mean_length"] < fits["100"]["mean_length"] and fits["20"]["recall"] < fits["100"]["recall"]
    assert fits["100"]["difference_from_100"]["mean"] == 0
    # the benchmark's own NDCG of everything that is listed is the reranker's
    assert large["blend"]["ndcg"]["mean"] == pytest.approx(fits["100"]["ndcg@10"], abs=0.01)
