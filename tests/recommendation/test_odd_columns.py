"""Columns and ids of any kind: fit, save, load, update and refit all read the same of them."""

import datetime
import decimal
import uuid

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.reranker import Reranker
from tests.shops import make_shop

CONFIG = RerankerConfig(encoder=None, sequence="off", refit=False)


def odd_columns(n: int) -> dict[str, pd.Series]:
    def filled(*values):
        return pd.Series([values[row % len(values)] for row in range(n)], dtype=object)

    numbers = pd.Series(np.arange(n, dtype=float))
    return {
        "tags": filled(np.array(["oak", "light"]), np.array(["pine"]), np.array([])),
        "parts": filled(["leg", "top"], None),
        "sizes": filled({"small": 1, "large": 2}),
        "whole": filled(3, None, 4),
        "sale": filled(True, None),
        "mixed": filled(1, "a", None, pd.NA),
        "bracket": pd.cut(numbers, 3),
        "weight": filled(decimal.Decimal("1.50")),
        "since": filled(datetime.date(2024, 5, 31), None),
        "broken": filled("half an emoji \ud83d"),
        "rare": pd.Series(pd.arrays.SparseArray(np.zeros(n))),
    }


@pytest.fixture(scope="module")
def tables():
    events, items = make_shop(n_users=60)
    return events, items.assign(**odd_columns(len(items)))


@pytest.fixture(scope="module")
def shop(tables):
    events, items = tables
    users = pd.DataFrame({"user_id": [f"u{row}" for row in range(60)], **odd_columns(60)})
    return Reranker(CONFIG, verbose=False).fit(events, items, users=users)


@pytest.fixture(scope="module")
def loaded(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    shop.save(folder)
    return Reranker.load(folder, verbose=False)


def test_lists_and_other_values_are_words_of_the_text(shop):
    text = shop.saved.fitted.items.texts[0]
    for words in ("tags: oak, light", "parts: leg, top", "sizes: small: 1, large: 2", "since: 2024-05-31", "mixed: 1"):
        assert words in text


def test_saved_and_loaded_the_columns_read_the_same(shop, loaded):
    for here, there in ((shop.saved.fitted.items, loaded.saved.fitted.items), (shop.saved.users, loaded.saved.users)):
        for name in odd_columns(1):
            before, after = here.frame[name], there.frame[name]
            assert before.isna().tolist() == after.isna().tolist(), name
            assert before.dropna().tolist() == after.dropna().tolist(), name
            assert [type(value) for value in before.dropna()] == [type(value) for value in after.dropna()], name


def test_a_refit_after_loading_reads_the_texts_of_the_fit(shop, loaded):
    again = loaded.refit()
    assert list(again.saved.fitted.items.texts) == list(shop.saved.fitted.items.texts)


def test_the_same_items_again_change_nothing(shop, tables):
    model = Reranker.from_saved(shop.saved)
    report = model.update(items=tables[1])
    assert (report.new_items, report.changed_items) == ([], [])


def test_an_update_that_changes_a_columns_kind_can_be_saved(shop, tmp_path):
    model = Reranker.from_saved(shop.saved)
    item = shop.saved.fitted.items.ids[0]
    model.update(items=[{"item_id": item, "whole": "many", "tags": 7}])
    model.save(tmp_path)
    for frame in (model.saved.fitted.items.frame, Reranker.load(tmp_path, verbose=False).saved.fitted.items.frame):
        assert frame["whole"].tolist()[:4] == ["many", frame["whole"][1], "4", "3"]
        assert frame["tags"].tolist()[0] == "7"


@pytest.mark.parametrize(
    "make", [lambda number: uuid.UUID(int=number), decimal.Decimal, lambda number: datetime.date(2000, 1, 1 + number)]
)
def test_ids_of_other_types_are_saved_and_found_again(make, tmp_path):
    events, items = make_shop(n_users=60)
    items = items.head(31)
    events = events[events["item_id"].isin(items["item_id"])]
    ids = {item: make(number) for number, item in enumerate(items["item_id"])}
    events = events.assign(item_id=events["item_id"].map(ids))
    items = items.assign(item_id=items["item_id"].map(ids))
    model = Reranker(CONFIG, verbose=False).fit(events, items)
    model.save(tmp_path)
    candidates = pd.DataFrame({"user_id": "u0", "item_id": list(ids.values())})
    answered = Reranker.load(tmp_path, verbose=False).rerank(candidates)
    assert answered["score"].notna().all()
    assert set(answered["item_id"]) == set(ids.values())
