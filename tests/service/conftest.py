"""One fitted shop with hostile titles, served for real, and a browser: for all tests that look at the page."""

import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from tests.browser import browser_of_the_system
from tests.service.asking import client, model, reading, saved_model, tables  # noqa: F401  # fixtures
from tests.service.looking import HOSTILE_USER, IMAGE, SCRIPT, served, visit
from tests.shops import make_shop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A shop whose titles want to be pictures and scripts, fitted without an encoder, with a cut."""
    interactions, items = make_shop(n_users=400)
    hostile = items["theme"].map(lambda theme: {"garden": IMAGE, "coffee": SCRIPT}.get(theme, ""))
    items = items.assign(title=hostile + " " + items["title"])
    interactions["user_id"] = interactions["user_id"].replace({"u1": HOSTILE_USER})
    config = RerankerConfig(
        encoder=None, sequence="off", candidates_per_source=40, threshold=ThresholdConfig("probability", 0.0005)
    )
    folder = tmp_path_factory.mktemp("shop")
    Reranker(config, verbose=False).fit(interactions, items).save(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    with LiveShop(folder) as shop, served(shop) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with browser_of_the_system() as started:
        yield started


@pytest.fixture
def seen(browser, base):
    """A visit after which nothing may have gone wrong."""
    with visit(browser, base) as opened:
        yield opened
        assert opened.wrong == []
        assert opened.page.evaluate("window.broken ?? null") is None
