"""The command that serves a model folder over HTTP."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_rerank.options import Device, ModelFolder, note
from llm_rerank.service.settings import ServiceSettings, check_bind
from llm_rerank.types import DataError

if TYPE_CHECKING:
    import asyncio

KEY_VARIABLE = "LLM_RERANK_API_KEY"

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What scipy, torch, FAISS and implicit read when they are loaded, which is after ``serve`` has begun."""


def serve(
    model: ModelFolder,
    host: Annotated[
        str, typer.Option("--host", help="Address to bind; anything but this machine's own needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port; 0 takes a free one.")] = 8_000,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help=f"File whose first line is the API key; else {KEY_VARIABLE} is read."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Further name the service has on this machine; may be repeated."),
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds after which a ranking that is not ready is refused.")
    ] = ServiceSettings.time_limit_s,
    long_time_limit: Annotated[
        float,
        typer.Option("--long-time-limit", help="The same for explanations, previews, erasures, new items, documents."),
    ] = ServiceSettings.long_time_limit_s,
    document_time_limit: Annotated[
        float, typer.Option("--document-time-limit", help="Seconds more for each document of a Cohere rerank.")
    ] = ServiceSettings.document_time_limit_s,
    head_time_limit: Annotated[
        float, typer.Option("--head-time-limit", help="Seconds within which a request's head must have arrived.")
    ] = ServiceSettings.head_time_limit_s,
    body_time_limit: Annotated[
        float, typer.Option("--body-time-limit", help="Seconds within which a body must have arrived.")
    ] = ServiceSettings.body_time_limit_s,
    queue: Annotated[
        int, typer.Option("--queue", help="Rankings that may wait; beyond, they are refused.")
    ] = ServiceSettings.queue_length,
    batch: Annotated[
        int, typer.Option("--batch", help="Most rankings that are answered by one call.")
    ] = ServiceSettings.batch_size,
    most_requests: Annotated[
        int, typer.Option("--most-requests", help="Requests in progress; beyond, all others are refused.")
    ] = ServiceSettings.most_requests,
    most_candidates: Annotated[
        int, typer.Option("--most-candidates", help="Greatest number of candidates, or documents, of one request.")
    ] = ServiceSettings.most_candidates,
    body_bytes: Annotated[
        int, typer.Option("--body-bytes", help="Greatest body of a request.")
    ] = ServiceSettings.body_bytes,
    preview_bytes: Annotated[
        int, typer.Option("--preview-bytes", help="Greatest table for a first look.")
    ] = ServiceSettings.preview_bytes,
    most_answers: Annotated[
        int, typer.Option("--most-answers", help="Answers that can be cut anew, the newest.")
    ] = ServiceSettings.most_answers,
    answer_lifetime: Annotated[
        float, typer.Option("--answer-lifetime", help="Seconds for which an answer can be cut anew.")
    ] = ServiceSettings.answer_lifetime_s,
    reload_every: Annotated[
        float, typer.Option("--reload-every", help="Seconds between looks at the model folder.")
    ] = ServiceSettings.reload_every_s,
    compact_every: Annotated[
        float, typer.Option("--compact-every", help="Seconds between foldings of the event log into the model folder.")
    ] = ServiceSettings.compact_every_s,
    cache_folder: Annotated[
        Path | None,
        typer.Option("--cache-folder", help="The one of the fits; emptied when a user who left words is forgotten."),
    ] = None,
    device: Device = "auto",
) -> None:
    r"""Answer over HTTP: rankings that follow fresh events, and a page to look at them.

    \b
    Page                 http://127.0.0.1:8000/
    Rankings             POST /recommend/rerank, /recommend
    Events               POST /events, /feedback, /items
    As Cohere's rerank   POST /v2/rerank
    Everything           GET /openapi.json

    Only this machine is answered, unless there is an API key. Ctrl-C or SIGTERM ends it after the requests in progress;
    a model saved to the folder meanwhile is found within a second, at once on SIGHUP, and answers once it is loaded; no
    request is lost.
    Needs `pip install "llm-rerank[serve]"`.
    """
    limit_threads()
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise DataError(f"{error.name} is not installed; run: pip install 'llm-rerank[serve]'") from None
    from llm_rerank.recommendation.live import LiveShop

    settings = ServiceSettings(
        api_key=read_key(api_key_file),
        allowed_hosts=tuple(allowed_host or ()),
        body_bytes=body_bytes,
        preview_bytes=preview_bytes,
        most_candidates=most_candidates,
        time_limit_s=time_limit,
        long_time_limit_s=long_time_limit,
        document_time_limit_s=document_time_limit,
        head_time_limit_s=head_time_limit,
        body_time_limit_s=body_time_limit,
        queue_length=queue,
        batch_size=batch,
        most_requests=most_requests,
        most_answers=most_answers,
        answer_lifetime_s=answer_lifetime,
        reload_every_s=reload_every,
        compact_every_s=compact_every,
        cache_folder=cache_folder,
    )
    check_bind(host, settings)
    with bound_socket(host, port) as listener, LiveShop(model, device=device) as shop:
        from llm_rerank.service.app import create_app
        from llm_rerank.service.connections import TimedProtocol

        app = create_app(shop, settings, loaded=settle_memory)
        config = uvicorn.Config(
            app,
            http=TimedProtocol,
            log_config=log_settings(),
            access_log=False,  # paths name users
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=60,
        )
        _run(uvicorn.Server(config), listener, app.state.look, model)


def limit_threads() -> None:
    """Let arithmetic run on one thread, unless ``OMP_NUM_THREADS`` says otherwise.

    One ranking is too little work to share among cores: more threads only wait for each other, and for the event loop.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    n_threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, n_threads)
    if n_threads.isdigit() and int(n_threads) > 0:
        threadpool_limits(int(n_threads))  # of numpy, which is loaded already


def settle_memory() -> None:
    """Take what is loaded out of the garbage collector's rounds: half a million objects that stay.

    One round over all of them holds every thread up for 0.1 s and more. What was taken out before is looked at again.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def bound_socket(host: str, port: int) -> socket.socket:
    """Take an address before the model is loaded; it listens only when the service is ready.

    Raises DataError where it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a name
        why = error.strerror if isinstance(error, OSError) else "no host can be named so"
        raise DataError(f"{host}, port {port}, cannot be bound ({why}); give another --host or --port") from None
    return listener


def read_key(file: Path | None) -> str | None:
    """Read the key from a file's first line, else from the environment; None where there is neither."""
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").partition("\n")[0].strip()
        except OSError as error:
            raise DataError(f"--api-key-file {file} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise DataError(f"--api-key-file {file} is no text file") from None
        if not key:
            raise DataError(f"--api-key-file {file} has an empty first line; write the key there")
        return key
    found = os.environ.get(KEY_VARIABLE)
    if found is not None and not found.strip():
        raise DataError(f"{KEY_VARIABLE} is empty; give a key, or unset it")
    return found


def log_settings() -> dict[str, Any]:
    """Give the settings of logs: to stderr, a line each, failures and not every request."""
    handler = {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": handler},
        "loggers": {
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "llm_rerank": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        },
    }


def _run(server: Any, listener: socket.socket, look: asyncio.Event, model: Path) -> None:
    """Serve until told to stop; SIGHUP means a look at the model folder at once."""
    import asyncio
    import signal
    import warnings

    from llm_rerank.types import DriftWarning

    warnings.simplefilter("ignore", DriftWarning)  # every answer tells it
    host, port = listener.getsockname()[:2]

    async def serving() -> None:
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, look.set)
        ready = asyncio.create_task(say_ready())
        try:
            await server.serve(sockets=[listener])
        finally:
            ready.cancel()

    async def say_ready() -> None:
        while not server.started:
            await asyncio.sleep(0.02)
        note(f"{model} is served at http://{f'[{host}]' if ':' in host else host}:{port}/")

    # the server handles both while it runs and sends them again when it has ended, which must not end us by force
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(serving())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
