"""An explorer behind a real port, as a browser needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from explorer_client import TOKEN

from whence.explorer import Door, Site, application


@contextmanager
def served(site: Site) -> Iterator[str]:
    """Serve an explorer on a free port meanwhile, and give the address that would be printed."""
    config = uvicorn.Config(None, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    listener = config.bind_socket()
    door = Door(host="127.0.0.1", port=listener.getsockname()[1], token=TOKEN)
    config.app = application(site, door)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield door.address
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def base(address: str) -> str:
    """Return an address without its key."""
    return address.split("/?")[0]
