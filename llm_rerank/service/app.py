"""The service: routes put together, what stands around them, and what runs beside them.

Outermost the observer (ids, counts, errors), then the guard (keys, hosts), then the limits (bodies), then the routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match

from llm_rerank.folders import current_name
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.service import cohere, events, explaining, operations, preview, ranking, searching, users
from llm_rerank.service.batching import ScoringQueue
from llm_rerank.service.context import Context
from llm_rerank.service.document import DescribedApp
from llm_rerank.service.failures import ServiceError, answer_failure, describe
from llm_rerank.service.limits import Limits
from llm_rerank.service.metrics import Metrics
from llm_rerank.service.observing import Observer
from llm_rerank.service.security import Guard
from llm_rerank.service.settings import ServiceSettings
from llm_rerank.service.values import parse_json
from llm_rerank.types import DataError, StorageError

PAGE = Path(__file__).parent / "page"

TRY_AGAIN_S = 60.0
"""Seconds after which a model that could not be loaded is tried again."""

DESCRIPTION = """Lists that follow what a user just did, with a probability for each item and the reasons for its place.

Ids are texts or whole numbers; numbers beyond 2^53 go out as texts, for JavaScript would round them, and either form
finds the item or user. Every refusal has one shape, which names the field. Where a component fails, the list
comes without it (`degraded`); where all fail, the order given comes back (`fallback`).
"""

logger = logging.getLogger(__name__)


class StrictRequest(Request):
    """A request whose JSON is read as the standard has it."""

    async def json(self) -> Any:
        """Parse the body. Raises ServiceError (400)."""
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """A route that takes JSON alone where it has a body."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Give the handler that reads strictly."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if self.body_field is not None:
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind != "application/json":
                    raise ServiceError(415, "send JSON as application/json", field="Content-Type")
            response: Response = await handler(StrictRequest(request.scope, request.receive))
            return response

        return strict


def create_app(
    shop: LiveShop, settings: ServiceSettings | None = None, *, loaded: Callable[[], None] | None = None
) -> FastAPI:
    """Build the service over a shop, which stays the caller's to close.

    loaded: called when a model has come in: after the first answers, before anybody is served, and after each swap.

    ``app.state.context`` has the counts, and ``app.state.look`` is an event that makes it look at the model folder at
    once. Raises DataError for impossible settings.
    """
    settings = settings or ServiceSettings()
    context = Context(shop, settings, Metrics())
    context.queue = ScoringQueue(
        partial(ranking.answer_batch, context),
        length=settings.queue_length,
        batch_size=settings.batch_size,
        metrics=context.metrics,
    )

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        snapshot = await asyncio.to_thread(context.snapshot)
        await asyncio.to_thread(context.warm_up, snapshot.reranker)  # so that the first request finds all ready
        context.metrics.set_model(shop.version)
        if loaded is not None:
            loaded()
        context.queue.start()
        keeping = asyncio.create_task(_keep(context, app.state.look, loaded))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await context.queue.stop()
            await context.quick.stop()
            await context.slow.stop()

    app = DescribedApp(
        title="llm_rerank",
        summary="The second selection",
        description=DESCRIPTION,
        version="1",
        docs_url=None,  # its pages would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=running,
        separate_input_output_schemas=False,
    )
    app.state.context = context
    app.state.look = asyncio.Event()
    app.router.route_class = StrictRoute
    for module in (ranking, explaining, events, users, searching, preview, cohere, operations):
        module.add_routes(app, context)
    _add_page(app)
    handlers = (RequestValidationError, HTTPException, DataError, StorageError)
    for kind in handlers:
        app.add_exception_handler(kind, _answer_failure)
    # the last one added stands outermost
    app.add_middleware(Limits, settings=settings, metrics=context.metrics)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observer, metrics=context.metrics)
    return app


async def _answer_failure(request: Request, error: Exception) -> Response:
    """Answer a refusal; OPTIONS, and a method that a route does not have, are told which it has."""
    if isinstance(error, HTTPException) and error.status_code in (404, 405) and not isinstance(error, ServiceError):
        methods = _methods_of(request)
        if methods and request.method not in methods - {"OPTIONS"}:
            allow = {"Allow": ", ".join(sorted(methods))}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=allow)
            refusal = ServiceError(405, "the route has other methods; the header Allow names them")
            refusal.headers = allow
            return await answer_failure(request, refusal)
        return await answer_failure(request, ServiceError(404, "there is no such route"))
    return await answer_failure(request, error)


def _methods_of(request: Request) -> set[str]:
    """Find all methods that some route of the path has."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ("GET",))
    if "GET" in methods:
        methods.add("HEAD")
    return methods | {"OPTIONS"} if methods else set()


def _add_page(app: FastAPI) -> None:
    """Serve the page at / and its files below /page/."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", media_type="text/html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


async def _keep(context: Context, look: asyncio.Event, loaded: Callable[[], None] | None) -> None:
    """Take over a replaced model, keep the log's files short, fold the log into the folder; each whatever else fails.

    A model that cannot be loaded is tried again where the folder names another, where a look is asked for, and after a
    minute: loading costs seconds, and the file that is wrong seldom mends itself.
    """
    loop, shop = asyncio.get_running_loop(), context.shop
    folded_at, origin = loop.time(), shop.origin
    failed, try_again_at = "", 0.0
    while True:
        try:
            await asyncio.wait_for(look.wait(), context.settings.reload_every_s)
            failed = ""
        except TimeoutError:
            pass
        look.clear()
        replaced = False
        try:
            name = current_name(shop.folder)
            if name != failed or loop.time() >= try_again_at:
                failed, try_again_at = name, loop.time() + TRY_AGAIN_S
                replaced = await asyncio.to_thread(shop.reload_if_replaced, context.warm_up)
                failed = ""
        except Exception as error:
            context.metrics.unexpected.labels("keeping").inc()
            said = f"{describe(error)}: {error}" if isinstance(error, StorageError) else describe(error)
            logger.error("the model in the folder cannot be taken over, the last one stays in use: %s", said)
        with _said_where_it_fails(context):
            if shop.origin != origin:  # not so where another process has written the same model back
                origin = shop.origin
                context.metrics.swaps.inc()
                logger.info("another model was taken over: %s", shop.version)
            context.metrics.set_model(shop.version)
            await asyncio.to_thread(context.snapshot)  # whom another process has erased is gone here too
            if replaced and loaded is not None:
                await asyncio.to_thread(loaded)
            await asyncio.to_thread(shop.log.checkpoint)
        if loop.time() - folded_at >= context.settings.compact_every_s:
            folded_at = loop.time()
            with _said_where_it_fails(context):
                await asyncio.to_thread(shop.tidy)


@contextmanager
def _said_where_it_fails(context: Context) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        context.metrics.unexpected.labels("keeping").inc()
        logger.error("the event log and the model folder cannot be kept in order: %s", describe(error))
