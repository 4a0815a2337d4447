"""A small fitted shop on disk, copied for each test that changes it, and the service over it without a network."""

import shutil
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi.testclient import TestClient

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.service.app import create_app
from llm_rerank.service.connections import TimedProtocol
from llm_rerank.service.settings import ServiceSettings
from tests.shops import make_shop, with_searches

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def tables():
    events, items = make_shop(n_users=300)
    return with_searches(events), items


@pytest.fixture(scope="session")
def saved_model(tables, tmp_path_factory):
    """A folder that no test may write to."""
    folder = tmp_path_factory.mktemp("fitted") / "shop"
    config = RerankerConfig(
        encoder=None, sequence="off", candidates_per_source=40, threshold=ThresholdConfig("recall", 0.9)
    )
    Reranker(config, verbose=False).fit(*tables).save(folder)
    return folder


@contextmanager
def serving(folder, *, client_host="127.0.0.1", address=ADDRESS, **settings):
    """Ask the service over a folder; ``client.shop`` and ``client.context`` are what is behind it."""
    with LiveShop(folder, device="cpu") as shop:
        app = create_app(shop, ServiceSettings(**settings))
        # errors that nobody foresaw must be answered too, so none is raised here
        with TestClient(app, base_url=address, client=(client_host, 50_000), raise_server_exceptions=False) as client:
            client.shop, client.context = shop, app.state.context
            yield client


@pytest.fixture
def model(saved_model, tmp_path):
    return shutil.copytree(saved_model, tmp_path / "shop")


@pytest.fixture
def client(model):
    with serving(model) as client:
        yield client


@pytest.fixture(scope="session")
def reading(saved_model, tmp_path_factory):
    """The service for tests that change nothing in it."""
    with serving(shutil.copytree(saved_model, tmp_path_factory.mktemp("reading") / "shop")) as client:
        yield client


def counted(client, name, **labels):
    """Value of one of the service's counts; 0 before the first."""
    return client.context.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def listening(shop, settings=None, **options):
    """Serve a shop on a free port of this machine, as the command does; gives the address."""
    app = create_app(shop, settings, **options)
    server = uvicorn.Server(
        uvicorn.Config(app, http=TimedProtocol, port=0, log_level="error", lifespan="on", timeout_keep_alive=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the service did not stop"
