"""The benchmark of forms of blend: its own fits and rules by hand, and a run on the bundled shop."""

import numpy as np
import pytest

from benchmarks import blend_cases, blend_forms
from benchmarks._blend_fits import fit_above, fit_by_pairs, minimise, ramps
from benchmarks._blend_half import log_rank, reciprocal_rank
from benchmarks._halves import FOLDS, judged_ndcg, load_halves
from benchmarks.blend_forms import Measured, choose, compare, overall
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.models.conditional_logit import fit_conditional_logit
from llm_rerank.recommendation.stage import fit_stage
from llm_rerank.types import Ragged


@pytest.fixture(scope="module")
def lists():
    """Three hundred lists of eight; the first column tells the target, the second is noise, the third tells against."""
    rng = np.random.default_rng(0)
    design = rng.normal(size=(2400, 3))
    rows = Ragged.from_lengths(np.arange(2400), np.full(300, 8))
    logits = design @ [1.5, 0.0, -1.0] + rng.gumbel(size=2400)
    positive = np.zeros(2400, dtype=bool)
    positive[logits.reshape(300, 8).argmax(axis=1) + 8 * np.arange(300)] = True
    return design, rows, positive


def test_a_logit_without_binding_floors_is_the_librarys(lists):
    found = fit_above(*lists, prior=np.zeros(3), least=np.full(3, -np.inf), penalty=3.0)
    assert found == pytest.approx(fit_conditional_logit(*lists, prior=np.zeros(3), penalty=3.0), abs=1e-3)
    held = fit_above(*lists, prior=np.zeros(3), least=np.zeros(3), penalty=3.0)
    assert held[2] == 0.0 and held[0] > 0.5


def test_pairs_find_the_direction_and_the_penalty_holds_them_at_the_prior(lists):
    weights = fit_by_pairs(*lists, prior=np.zeros(3), penalty=1.0)
    assert weights[2] / weights[0] == pytest.approx(-1 / 1.5, abs=0.15) and abs(weights[1]) < 0.1 * weights[0]
    prior = np.array([0.0, 2.0, 0.0])
    assert fit_by_pairs(*lists, prior=prior, penalty=1e7) == pytest.approx(prior, abs=1e-3)


def test_pairs_by_hand():
    # one list, one column, one target ranked second: the only free pair is with the first; 1/log2(2) - 1/log2(3)
    design, rows, positive = np.array([[1.0], [0.0]]), Ragged.from_lists([[0, 1]]), np.array([False, True])
    swap, sd = 1 - 1 / np.log2(3), 0.5
    w = fit_by_pairs(design, rows, positive, prior=np.array([1e-9]), penalty=1.0)[0]
    # slope of swap · log(1 + exp(w)) + sd² w² / 2 is 0, once the weight has turned the list over as well as before
    assert swap / (1 + np.exp(-w)) + sd**2 * w == pytest.approx(0, abs=1e-4)


def test_a_fit_that_stops_early_is_an_error():
    with pytest.raises(RuntimeError, match="did not converge"):
        minimise(lambda w: (float(w[0]), np.array([50.0])), np.zeros(1), n_cases=1)


def test_ramps_add_up_and_are_cut_at_the_knots():
    values = np.array([[-2.0], [0.5], [1.5], [9.0]], dtype=np.float32)
    pieces = ramps(values, np.array([[0.0, 1.0]]))
    assert pieces.tolist() == [[-2, 0, 0], [0, 0.5, 0], [0, 1, 0.5], [0, 1, 8]]


def test_ranks_within_lists():
    scores = np.array([[3.0], [5.0], [np.nan], [1.0]], dtype=np.float32)
    rows = Ragged.from_lists([[7, 8, 9], [7]])
    assert reciprocal_rank(scores, rows)[:, 0] == pytest.approx([1 / 62, 1 / 61, np.nan, 1 / 61], nan_ok=True)
    assert log_rank(scores, rows)[:, 0] == pytest.approx([-np.log(2), 0, np.nan, 0], nan_ok=True)


def test_the_simplest_within_one_error_of_the_best_is_kept():
    noise = np.tile([0.1, -0.1], 50)  # its mean has an error of .01
    assert choose({"simple": np.full(100, 0.5), "best": 0.509 + noise}) == {"best": "best", "kept": "simple"}
    assert choose({"simple": np.full(100, 0.5), "best": 0.511 + noise}) == {"best": "best", "kept": "best"}


def test_a_gain_on_average_with_a_loss_somewhere_changes_nothing():
    def found(gain):
        base = np.full(400, 0.1)
        form = base + gain + np.tile([0.01, -0.01], 200)
        measured = {name: Measured(v, v, {}) for name, v in ((blend_forms.PRESENT, base), ("roots only", form))}
        return compare(measured, seed=0)

    up, down = found(0.01), found(-0.004)
    assert up["halves"]["forms"]["roots only"]["relative"] == pytest.approx(0.1)
    roots = overall({"a": up, "b": down})["roots only"]
    assert roots["mean_relative_gain"] == pytest.approx(0.03) and roots["high"] - roots["low"] == pytest.approx(
        2 * 1.96 * 0.1 * 1.00125 / 20 / 2**0.5, rel=1e-3
    )
    assert roots["worse_on"] == ["b, halves", "b, later"] and not roots["would_change"]
    assert overall({"a": up, "b": up})["roots only"]["would_change"]


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """The folder that keeps the bundled shop's scored candidates."""
    return tmp_path_factory.mktemp("keep")


def test_forms_on_the_bundled_shop(keep, tmp_path):
    arguments = [
        "--dataset",
        "sample",
        "--forms",
        "root sum",
        "default alone",
        "roots only",
        "--keep",
        str(keep),
    ]
    report = blend_forms.main([*arguments, "--out", str(tmp_path / "report.json")])
    found = report["sets"]["sample"]
    assert list(found["halves"]["forms"]) == ["default alone", "root sum", "roots only", blend_forms.PRESENT]
    # the halves of blend_rungs, judged by the library's own stage, in benchmarks/results/blend_rungs/sample.json
    assert found["halves"]["n"] == 675
    ndcg = {name: form["ndcg@10"] for name, form in found["halves"]["forms"].items()}
    assert ndcg[blend_forms.PRESENT] == pytest.approx(0.1565, abs=0.004)
    assert ndcg[blend_forms.PRESENT] > ndcg["default alone"] + 0.01
    # the rungs shrunk toward the sum start from the sum's own order, on 325 users of F and 350 of G
    first, second = (fit["rungs"]["sum"] for fit in found["fits"]["roots only"])
    assert (325 * first + 350 * second) / 675 == pytest.approx(ndcg["root sum"])
    again = blend_forms.main(arguments)  # what was kept is read, and says the same
    assert again["sets"]["sample"]["halves"] == found["halves"] and again["overall"] == report["overall"]


def test_more_held_out_users_teach_the_blend_more(smaller_sample, tmp_path):
    shares = ["--shares", "0.1", "0.5", "1"]
    report = blend_cases.main([*smaller_sample, "--without-sequence", "--draws", "1", *shares, "--keep", str(tmp_path)])
    by_share = {row["share"]: row for row in report["shares"]}
    halves = load_halves("sample", None, keep=tmp_path)
    assert by_share[1.0]["n_users"] == len(halves.fold_f.targets) + len(halves.fold_g.targets)
    assert by_share[1.0]["ndcg"] > by_share[0.1]["ndcg"]
    assert by_share[0.5]["over_half"] == [0.0, 0.0, 0.0]
    gain = by_share[1.0]["ndcg"] - by_share[0.5]["ndcg"]
    assert by_share[1.0]["over_half"][0] == pytest.approx(gain, abs=1e-6)
    # all users once, by hand: the blend that the library fits on them
    whole = halves.whole
    assert whole.candidates.values.tolist() == [*halves.fold_f.candidates.values, *halves.fold_g.candidates.values]
    stage = fit_stage(whole, halves.names, features=PAIR_FEATURES, n_items=halves.n_items, start=None, seed=0).stage
    expected = judged_ndcg(stage.score(halves.later), halves.later).mean()
    assert by_share[1.0]["ndcg_of_draws"][0] == pytest.approx(expected)


@pytest.mark.parametrize("shares", [["0.1", "1"], ["0.5", "1.5"], ["0", "0.5"]])
def test_shares_without_the_half_or_out_of_range_are_refused(shares, capsys):
    with pytest.raises(SystemExit):
        blend_cases.main(["--dataset", "sample", "--shares", *shares])
    assert "give shares above 0 up to 1, 0.5 among them" in capsys.readouterr().err


def test_a_component_is_left_out_of_all_folds(keep):
    halves = load_halves("sample", None, keep=keep)
    fewer = halves.without(halves.names[1])
    assert fewer.names == (halves.names[0], *halves.names[2:])
    for label in FOLDS:
        before, after = (getattr(these, label).scored.scores for these in (halves, fewer))
        np.testing.assert_array_equal(after, np.delete(before, 1, axis=1))
