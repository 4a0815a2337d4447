"""Explanations checked against the public ``rerank``, for any fitted reranker: planted shops, or real data by hand."""

import numpy as np
import pandas as pd


def random_pairs(user_ids, item_ids, n_pairs, *, seed=0):
    """Random pairs of user and item; rows 2n and 2n + 1 are two items of one user."""
    rng = np.random.default_rng(seed)
    users = np.asarray(user_ids, dtype=object)[rng.choice(len(user_ids), n_pairs // 2)]
    codes = [rng.choice(len(item_ids), 2, replace=False) for _ in users]
    items = np.asarray(item_ids, dtype=object)[np.array(codes, dtype=np.int64).ravel()]
    return pd.DataFrame({"user_id": np.repeat(users, 2), "item_id": items})


def errors_of_sums(reranker, pairs, *, at=None):
    """Greatest errors of what explanations say of ``random_pairs``.

    The two pairs of a user are explained against each other, in lists of one: the parts of the second are those of
    the first minus the difference. Returns {"sum": parts against the explanation's own scores and difference; "score",
    "groups", "difference": against one rerank of all pairs}. The last three hold the rounding of a float32 product in
    another batch, which the blend's signed root enlarges where a standardised score is next to 0 (its slope there is
    infinite): with a weight of 10, 3e-5 were seen.
    """
    scores = reranker.rerank(pairs.assign(row=range(len(pairs))), at=at).set_index("row").sort_index()
    groups = [name for name in scores.columns if name.startswith("score_")]
    said, differences, own_errors, by_group = [], [], [], {name: [] for name in groups}
    for user, item, other in zip(pairs["user_id"][::2], pairs["item_id"][::2], pairs["item_id"][1::2], strict=True):
        explanation = reranker.explain(user, item, versus=other, at=at)
        own = np.array([part.value for part in explanation.contributions])
        apart = np.array([part.value for part in explanation.versus.contributions])
        of_group = np.array([f"score_{part.group}" for part in explanation.contributions])
        versus = explanation.versus
        said += [own.sum(), (own - apart).sum()]
        own_errors += [own.sum() - explanation.score, (own - apart).sum() - versus.other_score]
        own_errors.append(apart.sum() - versus.difference)
        differences.append([apart.sum(), versus.difference])
        for name in groups:
            by_group[name] += [own[of_group == name].sum(), (own - apart)[of_group == name].sum()]
    gaps = scores["score"].to_numpy()[::2] - scores["score"].to_numpy()[1::2]
    return {
        "sum": float(np.abs(own_errors).max()),
        "score": float(np.abs(said - scores["score"]).max()),
        "groups": float(np.abs(pd.DataFrame(by_group).to_numpy() - scores[groups].to_numpy()).max()),
        "difference": float(np.abs(np.array(differences) - gaps[:, None]).max()),
    }


def error_of_leave_one_out(reranker, interactions, pairs, *, at):
    """Greatest error of a history item's effect, against a rerank with ``histories`` that truly lack the item.

    interactions: frame in our column names. For each pair and each of its effects a user of its own comes with the
    history without that item, and one with the whole; all are reranked at once.
    Returns the error and the number of effects.
    """
    histories, candidates, effects = [], [], []
    for row, (user, item) in enumerate(zip(pairs["user_id"], pairs["item_id"], strict=True)):
        own = interactions[interactions["user_id"] == user]
        explanation = reranker.explain(user, item, at=at)
        for place, effect in enumerate([None, *explanation.history]):
            left = own if effect is None else own[own["item_id"] != effect.item_id]
            if not len(left):
                continue  # a user without events is one whose history is read from the fit
            histories.append(left.assign(user_id=f"pair {row} without {place}"))
            candidates.append({"user_id": f"pair {row} without {place}", "item_id": item})
            effects.append((row, 0.0 if effect is None else effect.effect))
    result = reranker.rerank(pd.DataFrame(candidates), histories=pd.concat(histories, ignore_index=True), at=at)
    scores = result["score"].to_numpy()
    rows = np.array([row for row, _ in effects])
    whole = scores[np.flatnonzero(np.diff(rows, prepend=-1))]
    lost = whole[rows] - scores
    return float(np.abs(lost - [effect for _, effect in effects]).max()), len(effects) - len(whole)
