"""`wamflow label`: a local page on which people correct a run's events. Read `server.py` next."""

from __future__ import annotations

import os
import sys
import webbrowser
from contextlib import suppress

from components.errors import UserError


def label(run: str, port: int, *, browser: bool) -> None:
    """Serve the page for one run until Ctrl-C. UserError for an unknown run or a taken port."""
    from flows import workspace
    from flows.labelling import found, server
    from flows.labelling.overlay import Overlay
    from flows.labelling.view import View

    project = workspace.project()
    overlay = Overlay(project, workspace.shared(project))
    overlay.read()  # what is wrong there is said before anything starts
    author = ""
    with suppress(UserError):  # nobody has to have told git a name
        author = workspace.git(project, "config", "user.name")

    def ready(address: str) -> None:
        print(address, flush=True)
        print(f"Corrections go to {overlay.events.parent}. Ctrl-C ends.", file=sys.stderr)
        if browser and (os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"} or _is_mac()):
            webbrowser.open(address)

    with found.opened(project, run) as past:
        with suppress(KeyboardInterrupt):  # uvicorn raises it again, or ends by itself
            server.serve(View(past), overlay, author, server.listening(port), ready)
        print("ended; what was saved is saved.", file=sys.stderr)


def _is_mac() -> bool:
    return sys.platform == "darwin"
