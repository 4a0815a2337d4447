from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.events import EVENT_WEIGHTS, event_kind, named_targets, read_events
from llm_rerank.types import DataError, DataReport


def read(columns, *, has_item=None, target_events=None, min_rating=None, require_targets=True):
    frame = pd.DataFrame(columns)
    report = DataReport()
    has_item = np.ones(len(frame), dtype=bool) if has_item is None else np.array(has_item)
    values = read_events(
        frame,
        has_item=has_item,
        target_events=target_events,
        min_rating=min_rating,
        require_targets=require_targets,
        report=report,
    )
    for array in (values.weights, values.ratings, values.quantities):
        assert array.dtype == np.float32 and array.shape == (len(frame),)
    return values, report.notes


def weights_of(*names):
    return np.array([EVENT_WEIGHTS[name] for name in names], dtype=np.float32).tolist()


def test_purchases_are_targets_where_there_are_any():
    values, notes = read({"event": ["view", "purchase", "cart", "rating"]})
    assert values.positive.tolist() == [False, True, False, False]
    assert values.weights.tolist() == weights_of("view", "purchase", "cart", "rating")
    assert notes == ["targets are events of kind purchase: 1 of 4"]


def test_else_every_event_but_views_and_searches():
    values, _ = read({"event": ["view", "click", "favourite", "search", "rating"]})
    assert values.positive.tolist() == [False, True, True, False, True]


def test_without_a_column_event_every_row_is_a_target_of_weight_one():
    values, notes = read({"item": [1, 2]})
    assert values.positive.all() and values.weights.tolist() == [1.0, 1.0] and values.quantities.tolist() == [1.0, 1.0]
    assert np.isnan(values.ratings).all() and notes == ["targets are events of kind interaction: 2 of 2"]


def test_target_events_that_are_named_are_taken():
    values, _ = read({"event": ["view", "purchase", "cart"]}, target_events=("view", "cart"))
    assert values.positive.tolist() == [True, False, True]


def test_kinds_in_lists_are_read_as_their_texts():
    values, notes = read({"event": [["view"], ["Buy"], None, ["view", "click"]]})
    assert values.positive.tolist() == [False, True, False, False]
    assert values.weights.tolist() == [*weights_of("view", "purchase", "interaction"), 1.0]
    assert any("events of kind view, click are not among" in note for note in notes)


def test_spellings_and_gaps():
    values, notes = read(
        {"event": ["Buy", " ORDER ", "addtocart", None, "", None], "rating": [None, None, None, 4, None, None]},
        has_item=[True, True, True, True, True, False],
    )
    assert values.positive.tolist() == [True, True, False, False, False, False]
    assert values.weights.tolist() == weights_of("purchase", "purchase", "cart", "rating", "interaction", "search")
    assert notes[0] == "3 events have no kind; taken as rating, search or plain interaction"


def test_a_column_event_without_any_value():
    values, _ = read({"event": [None, None]})
    assert values.positive.tolist() == [True, True]


def test_unknown_kinds_weigh_one_and_are_named():
    values, notes = read({"event": ["gift", "view"]})
    assert values.weights.tolist() == [1.0, np.float32(0.2)] and values.positive.tolist() == [True, False]
    assert notes[0].startswith("events of kind gift are not among search, view")


def test_low_ratings_are_dislikes_of_whatever_event():
    values, notes = read(
        {"event": ["view", "purchase", "purchase", "rating"], "rating": [2.0, 1.0, 3.0, None]}, min_rating=3
    )
    assert values.weights.tolist() == [np.float32(-0.2), -1.0, 1.0, 1.0]
    assert values.positive.tolist() == [False, False, True, False]
    assert "2 of 3 rated events are dislikes, below 3" in notes


@pytest.mark.parametrize(
    ("ratings", "said"),
    [
        ([1.0, 2.0, 3.0, 5.0, None], "2 of 4 rated events are below the middle of their scale (1 to 5)"),
        ([1.0, 5.0, 5.0, 5.5, 10.0], "3 of 5 rated events are below the middle of their scale (1 to 10)"),
        ([4.0, 5.0, 4.0, None], None),  # the scale begins at 1, whether anybody was that harsh or not
        ([None, None], None),
    ],
)
def test_low_ratings_that_count_as_liked_are_told(ratings, said):
    columns = {"rating": ratings, "event": ["rating"] * len(ratings)}
    _, notes = read(columns)
    found = [note for note in notes if "count as liked" in note]
    assert len(found) == (said is not None)
    if said is not None:
        assert found[0].startswith(said)
        middle = float(found[0].partition("min_rating=")[2].split()[0])
        assert middle == (1 + np.nanmax(np.array(ratings, float))) / 2
        assert not any("count as liked" in note for note in read(columns, min_rating=middle)[1])
    assert not any("count as liked" in note for note in read(columns, require_targets=False)[1])


def test_a_low_rating_that_is_a_dislike_already_is_not_told():
    assert not any("liked" in note for note in read({"rating": [1.0, 5.0, 4.0], "weight": [-1.0, 1.0, 1.0]})[1])


def test_a_rating_at_the_bound_is_no_dislike():
    values, _ = read({"rating": [2.9, 3.0, None]}, min_rating=3)
    assert values.positive.tolist() == [False, True, True] and values.weights.tolist() == [-1.0, 1.0, 1.0]


def test_own_weights_replace_ours():
    values, _ = read({"event": ["view", "purchase", "purchase", "purchase"], "weight": [0.5, 2.0, -1.0, None]})
    assert values.weights.tolist() == [0.5, 2.0, -1.0, 1.0]
    assert values.positive.tolist() == [False, True, False, True]


def test_searches_without_an_item_are_never_targets():
    values, _ = read({"event": ["search", "purchase"], "weight": [5.0, 1.0]}, has_item=[False, True])
    assert values.positive.tolist() == [False, True] and values.weights[0] == np.float32(0.1)
    values, _ = read({"event": ["search", "search"]}, has_item=[False, True], target_events=("search",))
    assert values.positive.tolist() == [False, True]


def test_an_export_of_returns_alone_is_refused_with_the_true_remedy():
    for more in ({}, {"event": ["purchase", "purchase", "view"]}):
        with pytest.raises(DataError, match="2 of 3 events are purchases .* which are returns; correct .*quantity"):
            read({"quantity": [0, -1, 0 if more else None], **more}, has_item=[True, True, bool(more)])
    values, _ = read({"quantity": [0]}, require_targets=False)
    assert values.returned.tolist() == [True] and not values.positive.any()


def test_quantities_and_returns():
    values, notes = read({"event": ["purchase", "purchase", "purchase", "view"], "quantity": [3, 0, "two", 0]})
    assert values.quantities.tolist() == [3.0, 1.0, 1.0, 1.0]
    assert values.returned.tolist() == [False, True, False, False]
    assert values.positive.tolist() == [True, False, True, False]
    assert notes[-1] == "targets are events of kind purchase: 2 of 3"  # a return is no event
    assert "1 values of quantity are no numbers; taken as unknown" in notes


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"event": ["view", "click"]},
            {"target_events": ("purchase",)},
            "target_events names 'purchase', but the data",
        ),
        ({"event": ["view"]}, {"target_events": ()}, "target_events names no event, but the data has the events view"),
        ({"event": ["view", "search"]}, {}, "no event is a target: the data has only view, search"),
        ({"event": ["view"]}, {"min_rating": 3}, "min_rating is 3, but no event has a rating; leave it out or map"),
        (
            {"rating": [1.0, 5.0]},
            {"min_rating": 8},
            "min_rating is 8; the data has the events rating, rated 1 to 5, so",
        ),
    ],
)
def test_settings_that_do_not_fit_are_errors_for_a_fit_and_none_for_a_history(columns, settings, message):
    with pytest.raises(DataError, match=message):
        read(columns, **settings)
    values, _ = read(columns, require_targets=False, **settings)
    assert not values.positive.any()


@pytest.mark.parametrize("column", ["rating", "quantity", "weight"])
def test_a_number_that_no_float_holds_is_unknown(column):
    values, notes = read({"event": ["purchase", "purchase"], column: [10**400, 2]})
    np.testing.assert_array_equal(values.ratings, [np.nan, 2.0 if column == "rating" else np.nan])
    assert (values.weights[0], values.quantities[0]) == (1.0, 1.0)
    assert f"1 values of {column} are no numbers; taken as unknown" in notes


def test_a_weight_beyond_all_reason_is_refused():
    """1e8, an amount in cents perhaps: least squares would break down on it, minutes into a fit."""
    with pytest.raises(DataError, match=r"1 of 3 events have a weight beyond 1,000 \(first: -1e\+08\); .*divide the"):
        read({"event": ["view", "purchase", "purchase"], "weight": [1_000.0, -1e8, None]})
    values, _ = read({"event": ["purchase", "purchase"], "weight": [1_000.0, -1_000.0]})
    assert values.weights.tolist() == [1_000.0, -1_000.0]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("view_item", "view"),
        ("view_item_list", "view"),
        ("detail-page-view", "view"),
        ("Product Viewed", "view"),
        ("remove_from_cart", "view"),
        ("select_item", "click"),
        ("view_search_results", "search"),
        ("Add to cart", "cart"),
        ("begin_checkout", "cart"),
        ("add_to_wishlist", "favourite"),
        ("Order Completed", "purchase"),
        ("kauf am tag", "kauf am tag"),
    ],
)
def test_names_of_web_analytics_are_kinds_that_are_known(given, kind):
    assert event_kind(given) == kind


def test_looks_of_web_analytics_are_no_successes():
    values, _ = read({"event": ["view_item", "add_to_cart", "view_item_list", "view_search_results", "select_item"]})
    assert values.positive.tolist() == [False, True, False, False, True]
    assert values.weights.tolist() == weights_of("view", "cart", "view", "search", "click")


def advice_on(*kinds, **settings):
    report = DataReport()
    given = {"target_events": None, "min_rating": None, "require_targets": True, **settings}
    read_events(pd.DataFrame({"event": kinds}), has_item=np.ones(len(kinds), dtype=bool), report=report, **given)
    return report.advice


def test_kinds_that_count_as_successes_because_they_are_unknown_are_told_with_the_remedy():
    (advice,) = advice_on("ansicht", "warenkorb", "view", "kauf")
    assert advice == (
        "events of 3 kinds count as successes (ansicht, warenkorb, kauf), for ansicht, warenkorb, kauf are no names "
        "known here and none is purchase; name those that are successes: target_events=('NAME',), or --target-event "
        "NAME on the command line"
    )
    (beside,) = advice_on("cart", "merkliste")
    assert "2 kinds count as successes (cart, merkliste), for merkliste are no names" in beside
    assert advice_on("view", "kauf") == []  # one kind beside looks: nothing to tell apart
    assert advice_on("ansicht", "purchase") == []
    assert advice_on("view", "cart", "favourite") == []
    assert advice_on("ansicht", "kauf", target_events=("kauf",)) == []
    assert advice_on("ansicht", "kauf", require_targets=False) == []


def test_a_log_of_looks_alone_names_the_looks():
    with pytest.raises(DataError) as error:
        read({"event": ["view", "page_view", "search"]}, has_item=[True, True, False])
    assert str(error.value) == (
        "no event is a target: the data has only view, search, and views and searches are no successes unless they "
        "are named: target_events=('view',), or --target-event view on the command line"
    )
    assert named_targets(["im korb", "kauf"]) == (
        "target_events=('im korb', 'kauf'), or --target-event 'im korb' --target-event kauf on the command line"
    )
    values, _ = read({"event": ["view", "page_view"]}, target_events=("view",))
    assert values.positive.all()
