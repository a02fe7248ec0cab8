"""A local web explorer of a run: ``whence serve``.

Every page is a dict made here, shown by a template or, with ``.json`` behind its address, as it is.
"""

from whence.explorer.app import application
from whence.explorer.guard import Door
from whence.explorer.opened import Opened
from whence.explorer.oracle import Oracle, OwnModel
from whence.explorer.problems import Problem
from whence.explorer.server import ServeSettings, open_site, serve
from whence.explorer.site import Site

__all__ = [
    "Door",
    "Opened",
    "Oracle",
    "OwnModel",
    "Problem",
    "ServeSettings",
    "Site",
    "application",
    "open_site",
    "serve",
]
