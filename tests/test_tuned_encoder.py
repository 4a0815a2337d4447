"""The tuning of an encoder on purchases: pairs and loss by hand, and what it learns on a made shop."""

import numpy as np
import pytest
import torch

from benchmarks import tuned_encoder
from benchmarks._encoder_tuning import EncoderTuning, Purchases, own_items, pair_loss, purchases_of, tune_encoder
from llm_rerank.data.splits import hash_users
from llm_rerank.models.semantic.weights import load_network
from llm_rerank.types import Ragged
from tests.planted import events_of


def events(users, items, n_users, n_items):
    return events_of(list(zip(users, items, range(len(users)), strict=True)), n_items, n_users=n_users)


def test_purchases_are_distinct_items_with_a_text_of_users_with_two():
    past = events([0, 1, 0, 0, 1, 2, 2], [1, 1, 2, 1, 3, 4, 0], n_users=3, n_items=5)
    texts = np.array(["", "a", "b", "c", "d"], dtype=object)  # item 0 says nothing, so user 2 is left with one
    parts = purchases_of(past, texts)
    rows = sorted(row.tolist() for part in parts for row in (part.items[i] for i in range(len(part.items))))
    assert rows == [[1, 2], [1, 3]]
    assert sum(part.shares.sum() for part in parts if len(part.items)) == pytest.approx(
        sum(len(part.items) > 0 for part in parts)
    )


def test_pairs_are_two_items_of_one_user_drawn_by_their_shares():
    purchases = Purchases.of(Ragged.from_lists([[0, 1], [0, 2, 3, 4]]), 5)
    rng = np.random.default_rng(0)
    counts = np.zeros(5)
    for _ in range(4_000):
        rows, first, second = purchases.draw(9, rng)
        assert sorted(rows.tolist()) == [0, 1] and (first != second).all()
        assert all(np.isin([a, b], purchases.items[row]).all() for row, a, b in zip(rows, first, second, strict=True))
        np.add.at(counts, second, 1)
    assert counts / counts.sum() == pytest.approx(purchases.shares, abs=0.02)


def test_the_loss_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    shares = torch.tensor([0.5, 0.1])
    none = torch.zeros(2, 2, dtype=torch.bool)
    logits = first @ second.T / 0.5 - torch.log(shares)
    expected = -(logits.diagonal() - torch.logsumexp(logits, dim=1)).mean()
    assert float(pair_loss(first, second, shares, none, 0.5)) == pytest.approx(float(expected))
    own = torch.tensor([[False, True], [True, False]])  # nothing left to tell the pair from
    assert float(pair_loss(first, second, shares, own, 0.5)) == pytest.approx(0.0)


def test_what_a_user_took_is_no_negative_of_theirs():
    purchases = Purchases.of(Ragged.from_lists([[0, 1, 2], [3, 4]]), 5)
    own = own_items(purchases, np.array([0, 1, 0]), np.array([1, 3, 2]))
    assert own.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_tuning_learns_who_buys_what_together():
    colours, foods = ["red", "green", "blue", "white"], ["soup", "bread", "cheese", "fish"]
    texts = np.array(colours + foods, dtype=object)  # red goes with soup, green with bread, and so on
    users = np.repeat(np.arange(80), 2)
    items = np.stack([np.arange(80) % 4, 4 + np.arange(80) % 4], axis=1).ravel()
    network = load_network("default", "cpu")
    weight = next(network.parameters()).clone()
    settings = EncoderTuning(steps=12, pairs_per_step=16, learning_rate=2e-4, evaluate_every=4)
    log = tune_encoder(network, events(users, items, 80, 8), texts, settings, lambda line: None)
    assert [entry["step"] for entry in log] == [0, 4, 8, 12]
    assert min(entry["loss"] for entry in log) < 0.5 * log[0]["loss"]
    assert not torch.equal(weight, next(network.parameters())) and network.max_seq_length > 32
    vectors = network.encode(texts.tolist(), normalize_embeddings=True, convert_to_numpy=True)
    similar = vectors[:4] @ vectors[4:].T
    assert (similar.argmax(axis=1) == np.arange(4)).all()


def test_items_that_only_users_to_stop_by_took_do_not_swell_the_loss():
    texts = np.array([*"abcdefgh"], dtype=object)
    stops = hash_users(np.array([f"u{user}" for user in range(80)], dtype=object), 10, salt="encoder") == 0
    alone = np.isin(np.arange(80), np.flatnonzero(stops)[:3])
    items = np.stack([np.arange(80) % 4, 2 + np.arange(80) % 2], axis=1) % 4 + 4 * alone[:, None]
    items[:, 1] += items[:, 0] == items[:, 1]
    past = events(np.repeat(np.arange(80), 2), items.ravel(), 80, 9)
    network = load_network("default", "cpu")
    log = tune_encoder(
        network, past, np.append(texts, "i"), EncoderTuning(steps=1, pairs_per_step=16), lambda line: None
    )
    assert log[0]["loss"] < 10  # by shares of the other users −log q alone would be 20


@pytest.mark.slow
def test_a_run_on_the_sample(tmp_path):
    report = tuned_encoder.main(
        ["--dataset", "sample", "--steps", "4", "--pairs", "16", "--out", str(tmp_path / "report.json")]
    )
    assert set(report["forms"]) == {"similarity alone", "all but the cross-encoder"}
    for entry in report["forms"].values():
        assert entry["n"] == report["n_users"] and entry["mean"] == pytest.approx(entry["tuned"] - entry["untuned"])
