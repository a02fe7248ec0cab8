"""Opening a run and listening for the browser."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from whence.audit import AgainSettings, Watch, open_run, reload_data
from whence.audit.decided import DecidedSettings, retrain_run
from whence.audit.decisions import Decisions
from whence.errors import ConfigError
from whence.explorer.app import application
from whence.explorer.guard import Door
from whence.explorer.job import Retraining
from whence.explorer.opened import Opened
from whence.explorer.oracle import Oracle, OwnModel
from whence.explorer.site import Site

__all__ = ["ServeSettings", "open_site", "serve"]

_SELF = "self_influence"


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the explorer listens.

    Args:
        host: An address of this machine. Others than 127.0.0.1 let other machines ask, without encryption.
        port: Port; 0 takes a free one.

    Raises:
        ConfigError: The address or the port is none.
    """

    host: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        try:
            address = ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError as error:
            raise ConfigError(f"--host must be an address, got {self.host!r}. Try 127.0.0.1.") from error
        if address.is_unspecified:
            raise ConfigError(f"--host must be one address of this machine, got {self.host}, which is all. Name one.")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port must lie in 0 to 65535, got {self.port}.")


def open_site(
    folder: str | Path, *, data_source: str | Path | None = None, edit: bool = False,
    against: str | Path | None = None, bring: Callable[[Opened], OwnModel] | None = None, version: str = "",
) -> Site:  # fmt: skip
    """Open a run to be explored.

    Args:
        folder: The run.
        data_source: Where the data lies now; None for where it was.
        edit: Whether decisions can be made.
        against: Another run of the same rows, to compare with.
        bring: Returns the user's model, for a run that was made with one.
        version: To name in what is written.

    Raises:
        RunFormatError: The run or its decisions are damaged, or the data is another one.
    """
    run = open_run(folder)
    opened = Opened.of(run, reload_data(run, data_source))
    own = None if bring is None else bring(opened)
    oracle = Oracle(opened, own)
    if _SELF not in opened.frame and oracle.missing is None:  # a run with a split keeps none in its list
        opened.frame[_SELF] = oracle.self_influence()
    decisions = Decisions(run.folder, opened.data.fingerprint)

    def work(watch: Watch) -> dict[str, Any]:
        training = AgainSettings(cache=run.folder / "cache")
        settings = DecidedSettings(decisions=tuple(decisions.all().values()), training=training)
        found = None if own is None else own.bring
        return retrain_run(run, opened.data, settings, bring=found, version=version, watch=watch)

    return Site(
        opened=opened, decisions=decisions, oracle=oracle, retraining=Retraining(run.folder, work),
        against=None if against is None else open_run(against), edit=edit,
    )  # fmt: skip


def serve(site: Site, settings: ServeSettings, on_ready: Callable[[str], None]) -> None:
    """Answer requests until interrupted.

    Args:
        site: What to show.
        settings: Where to listen.
        on_ready: Called with the address, token included, once it is open.

    Raises:
        ConfigError: The port cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.port))
            listener.listen()  # whoever follows the address at once waits, and is not turned away
        except OSError as error:
            raise ConfigError(
                f"--port must be free on {settings.host}, got {settings.port} ({error.strerror}). Leave it out."
            ) from error
        port = int(listener.getsockname()[1])
        door = Door(host=settings.host, port=port, token=secrets.token_urlsafe(24))
        config = uvicorn.Config(
            application(site, door), log_level="warning", access_log=False, lifespan="off", ws="none",
            server_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        on_ready(door.address)
        with suppress(KeyboardInterrupt):  # Ctrl-C is how it is ended: uvicorn raises it again when all is closed
            uvicorn.Server(config).run(sockets=[listener])
