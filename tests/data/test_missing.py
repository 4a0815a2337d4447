import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.data.missing import MissingValues, Standardizer
from llm_rerank.types import DataError, NotFittedError

NAN = np.nan


def floats(rows):
    return np.array(rows, dtype=np.float32)


def test_mean_median_and_most_frequent_by_hand():
    column = floats([[1.0], [1.0], [2.0], [4.0], [42.0], [NAN]])
    for treatment, value in (("mean", 2.0), ("median", 2.0), ("most_frequent", 1.0)):
        filled = MissingValues(treatments={"a": treatment}).fit(column, ["a"]).transform(column)
        # The mean is 10; a column of five distinct values is a label, and 4 is the known value nearest to 10
        assert filled[5].tolist() == [4.0 if treatment == "mean" else value, 1.0]
        assert filled[:5, 0].tolist() == column[:5, 0].tolist()
        assert filled[:5, 1].tolist() == [0.0] * 5


def test_the_mean_of_a_measure_is_not_snapped():
    measure = floats([[value] for value in range(20)] + [[NAN]])
    filled = MissingValues(treatments={"a": "mean"}).fit(measure, ["a"]).transform(measure)
    assert filled[20, 0] == pytest.approx(9.5)


def test_the_model_reads_other_columns():
    rng = np.random.default_rng(1)
    first = rng.normal(size=400)
    values = floats(np.column_stack([first, 3 * first + 2]))
    values[:5, 1] = NAN
    filled = MissingValues(treatments={"b": "model"}).fit(values, ["a", "b"]).transform(values)
    assert filled[:5, 1] == pytest.approx(3 * first[:5] + 2, abs=0.02)  # ridge: close, not exact


def test_the_model_reads_that_another_column_is_missing():
    rng = np.random.default_rng(1)
    gone = rng.random(2_000) < 0.5
    first = np.where(gone, NAN, rng.normal(size=2_000))
    values = floats(np.column_stack([first, gone * 4 + rng.normal(size=2_000) / 9]))
    missing = MissingValues(treatments={"b": "model"}).fit(values, ["a", "b"])
    assert missing.transform(floats([[NAN, NAN], [0.0, NAN]]))[:, 1] == pytest.approx([4, 0], abs=0.05)


def planted(n_rows=4_000):
    """One column for each treatment, and the treatment that must win it."""
    rng = np.random.default_rng(2)
    driver = rng.normal(size=n_rows)
    columns = {
        "uniform": (rng.uniform(size=n_rows), "mean"),  # mean and median equal: the simpler
        "heavy": (np.exp(2 * rng.normal(size=n_rows)), "median"),
        "label": (rng.choice([1, 2, 3, 4, 5], p=[0.45, 0.1, 0.1, 0.1, 0.25], size=n_rows), "most_frequent"),
        "driver": (driver, "model"),
        "driven": (2 * driver + rng.normal(size=n_rows) / 4, "model"),
    }
    values = floats(np.column_stack([column for column, _ in columns.values()]))
    values[rng.random(values.shape) < 0.15] = NAN
    return values, list(columns), {name: treatment for name, (_, treatment) in columns.items()}


def test_each_column_gets_the_treatment_that_rebuilds_it_best():
    values, names, winners = planted()
    missing = MissingValues().fit(values, names, seed=3)
    assert missing.treatments == winners
    assert missing.output_names == (*names, *(f"{name}_missing" for name in names))
    errors = missing.errors["driven"]
    assert errors["model"] < 0.6 * errors["mean"]
    given_one = MissingValues(treatments={"driven": "median"}).fit(values, names, seed=3)
    assert given_one.treatments == winners | {"driven": "median"}
    assert "driven" not in given_one.errors


def test_noise_is_not_rebuilt_from_noise():
    # 20 columns on 60 rows fit what they have seen; cells that were really hidden show that nothing was learned
    values = np.random.default_rng(4).uniform(size=(60, 20)).astype(np.float32)
    chosen = MissingValues().fit(values, [f"c{column}" for column in range(20)]).treatments
    assert list(chosen.values()).count("model") <= 1


def test_indicators_only_where_there_were_gaps():
    values = floats([[1, NAN, 5, NAN], [2, 1, 6, NAN], [3, 2, 7, NAN]])
    missing = MissingValues().fit(values, ["a", "b", "c", "d"])
    # d is missing throughout: an indicator would be a constant, and there is nothing to fill with but 0
    assert missing.output_names == ("a", "b", "c", "d", "b_missing")
    filled = missing.transform(floats([[NAN, NAN, NAN, NAN], [1, 1, 5, 9]]))
    assert not np.isnan(filled).any()
    assert filled[:, 3].tolist() == [0, 9]
    assert filled[:, 4].tolist() == [1, 0]
    assert MissingValues(indicator=False).fit(values, list("abcd")).output_names == ("a", "b", "c", "d")


def test_missing_values_survive_json():
    values, names, _ = planted(600)
    missing = MissingValues(treatments={"label": "median"}).fit(values, names)
    again = MissingValues.from_dict(json.loads(json.dumps(missing.to_dict())))
    assert again.transform(values).tobytes() == missing.transform(values).tobytes()
    assert (again.treatments, again.output_names, again.errors) == (
        missing.treatments,
        missing.output_names,
        missing.errors,
    )


cells = st.lists(
    st.lists(st.one_of(st.just(NAN), st.floats(-1e6, 1e6, width=32)), min_size=3, max_size=3), min_size=1, max_size=30
)


@given(cells)
def test_known_cells_stay_and_gaps_close_whatever_the_table(rows):
    values = floats(rows)
    kept = values.copy()
    filled = MissingValues().fit(values, ["a", "b", "c"]).transform(values)
    known = np.isfinite(values)
    assert np.isfinite(filled).all()
    assert np.array_equal(filled[:, :3][known], values[known])
    np.testing.assert_array_equal(values, kept)


def test_missing_values_refuse_what_does_not_fit():
    with pytest.raises(DataError, match="treatment of 'a' is 'mode'; it must be one of mean, median"):
        MissingValues(treatments={"a": "mode"})
    with pytest.raises(DataError, match="treatments name unknown columns \\['z'\\]"):
        MissingValues(treatments={"z": "mean"}).fit(floats([[1]]), ["a"])
    with pytest.raises(DataError, match="1 infinite cells"):
        MissingValues().fit(floats([[np.inf]]), ["a"])
    with pytest.raises(DataError, match=r"shape \(1, 2\); expected \(n_rows, 1\)"):
        MissingValues().fit(floats([[1]]), ["a"]).transform(floats([[1, 2]]))
    with pytest.raises(NotFittedError):
        MissingValues().transform(floats([[1]]))


def test_standardizer_by_hand():
    values = floats([[1, 5, NAN], [3, 5, NAN], [NAN, 5, NAN]])
    standardizer = Standardizer().fit(values)
    # column 1: mean 2, standard deviation 1; a constant becomes 0; nothing known stays unknown
    expected = [[-1, 0, NAN], [1, 0, NAN], [NAN, 0, NAN]]
    np.testing.assert_array_equal(standardizer.transform(values), floats(expected))
    again = Standardizer.from_dict(json.loads(json.dumps(standardizer.to_dict())))
    np.testing.assert_array_equal(again.transform(values), floats(expected))


def test_a_constant_that_is_no_power_of_two_becomes_zero():
    values = np.full((7, 1), 0.1)  # the mean of seven is 0.09999999999999999, the deviation 1.4e-17
    assert Standardizer().fit(values).transform(values) == pytest.approx(np.zeros((7, 1)), abs=1e-12)


def test_standardizer_refuses_what_does_not_fit():
    with pytest.raises(NotFittedError):
        Standardizer().transform(floats([[1]]))
    with pytest.raises(NotFittedError):
        Standardizer().to_dict()
    with pytest.raises(DataError, match="expected"):
        Standardizer().fit(floats([[1]])).transform(floats([[1, 2]]))


def test_a_table_without_columns_is_fitted_all_the_same():
    nothing = np.empty((3, 0), dtype=np.float32)
    fitted = MissingValues().fit(nothing, ())
    assert fitted.transform(nothing).shape == (3, 0)
    assert MissingValues.from_dict(fitted.to_dict()).transform(nothing).shape == (3, 0)
    with pytest.raises(NotFittedError):
        MissingValues().transform(nothing)
