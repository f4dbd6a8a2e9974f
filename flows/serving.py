"""`python -m flows.serving`: offers this checkout's flow to the server of PREFECT_API_URL.

What `wamflow up` starts beside the server. The deployment is the one in `prefect.yaml`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import yaml


def deployment(project: Path) -> dict[str, Any]:
    """Name, description, tags and schedules from `prefect.yaml`."""
    from prefect.schedules import Cron

    written = yaml.safe_load((project / "prefect.yaml").read_text())["deployments"][0]
    schedules = [
        Cron(s["cron"], timezone=s["timezone"], active=s["active"]) for s in written["schedules"]
    ]
    return {
        "name": written["name"],
        "description": written["description"],
        "tags": written["tags"],
        "schedules": schedules,
    }


def main() -> None:
    """Serve until a signal."""
    from prefect import serve

    from flows import workspace
    from flows.retrain import retrain

    chosen = deployment(workspace.project())
    offered = retrain.to_deployment(**chosen)
    assert not inspect.isawaitable(offered)  # Prefect gives a coroutine inside an event loop only
    serve(offered)


if __name__ == "__main__":
    main()
