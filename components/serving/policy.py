"""The World Action Model as a policy: what it sees and the next event's caption in, actions out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from components.errors import DataError, UserError
from components.normalisation import Normalisation
from components.outputs import sha256
from components.serving.asked import Asked, Model, Told


class Policy:
    """Weights of one checkpoint; `infer` is what the policy server calls."""

    def __init__(self, checkpoint: Path, embodiment: str | None = None) -> None:
        self.config = _json(checkpoint / "config.json")
        self.model = _model(checkpoint, self.config)
        self.robot = self._robot(embodiment)
        self.normalisation = Normalisation.from_dict(
            _json(checkpoint / "normalisation.json")[self.robot["name"]]
        )
        self.metadata: dict[str, Any] = {
            "model_digest": sha256(checkpoint / "model.safetensors"),
            "embodiment": self.robot["name"],
            "fps": self.robot["fps"],
            "state_names": self.robot["state_names"],
            "action_names": self.robot["action_names"],
            "cameras": self.robot["cameras"],
            "max_steps": self.model.max_steps,
            "history": {"pictures": self.model.history, "every_s": self.model.every_s},
            "event_plans": _json(checkpoint / "event_plans.json"),
        }
        named = sorted({text for plan in self.metadata["event_plans"].values() for text in plan})
        self.model.remember(named)  # so that no trial waits for it

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The rest of the event that `prompt` names, or a chunk, from what the robot sees now.

        Reads `observation/<camera>` uint8 (H, W, 3), `observation/state` (S,), `prompt`, and `seed`
        (0 when absent). A model with a history (see `metadata`) also reads `history/<camera>` uint8
        (n, H, W, 3), oldest first; where fewer are sent than it is shown, since a robot has just
        begun, the oldest picture stands for those before it. With a true `expected` the model is
        asked what it expects to see.

        Returns `actions` float32 (T, A) in the robot's units, T the steps to the event's end (or of
        the longest window, if that ends before) or of the chunk, `event_remaining`, the steps to
        the event's end (T where the model cannot say), and `event_done`, how far through the event
        the robot is, from a model that can say so; where asked for, `expected/<camera>` uint8
        (F, h, w, 3) and `expected_at_s` float32 (F,), seconds from now. UserError for what is
        missing or misshapen.
        """
        state = np.asarray(self._get(observation, "observation/state"), dtype=np.float32)
        if state.shape != (len(self.robot["state_names"]),):
            raise UserError(
                f"observation/state: expected {len(self.robot['state_names'])} numbers "
                f"{self.robot['state_names']}; got shape {state.shape}."
            )
        if not np.isfinite(state).all():
            raise UserError(f"observation/state: expected finite numbers; got {state.tolist()}.")
        width = len(self.robot["action_names"])
        told = self.model.plan(
            Asked(
                pictures=self._pictures(observation),
                state=self.normalisation.state(state),
                action_width=width,
                embodiment=self.robot["name"],
                step_s=1 / self.robot["fps"],
                words=str(self._get(observation, "prompt")),
                random=torch.Generator().manual_seed(int(observation.get("seed", 0))),
                show=bool(observation.get("expected", False)),
            )
        )
        units = self.normalisation.action_in_units(told.actions[:, :width].numpy())
        said = {} if told.done is None else {"event_done": told.done}
        return {"actions": units, "event_remaining": told.remaining} | said | self._shown(told)

    def _shown(self, told: Told) -> dict[str, Any]:
        """What the model expects each of this robot's cameras to see."""
        if told.expected is None:
            return {}
        views = ((told.expected.pictures.movedim(2, -1) + 1) * 127.5).round().to(torch.uint8)
        named = zip(self.config["cameras"], views.numpy(), strict=True)
        seen = {f"expected/{name}": view for name, view in named if name in self.robot["cameras"]}
        return seen | {"expected_at_s": told.expected.at_s}

    def _pictures(self, observation: dict[str, Any]) -> list[torch.Tensor | None]:
        """Of every camera that the model knows; None where this robot has none."""
        mine = self.robot["cameras"]
        return [self._seen(observation, c) if c in mine else None for c in self.config["cameras"]]

    def _seen(self, observation: dict[str, Any], camera: str) -> torch.Tensor:
        """(1 + history, 3, S, S), now last."""
        size, most = self.model.size_px, self.model.history
        name, before = f"observation/{camera}", f"history/{camera}"
        now = _picture(np.asarray(self._get(observation, name)), size, name)[None]
        sent = np.asarray(observation.get(before, np.zeros((0, size, size, 3), np.uint8)))
        if sent.ndim != 4 or len(sent) > most:
            raise UserError(f"{before}: expected at most {most} pictures; got shape {sent.shape}.")
        earlier = [_picture(picture, size, before)[None] for picture in sent]
        missing = [[*earlier, now][0]] * (most - len(earlier))
        return torch.cat([*missing, *earlier, now])

    def _robot(self, embodiment: str | None) -> dict[str, Any]:
        robots: dict[str, dict[str, Any]] = {r["name"]: r for r in self.config["embodiments"]}
        name = embodiment or next(iter(robots))
        if name not in robots:
            raise UserError(f"policy: unknown embodiment {name!r}; the model knows {list(robots)}.")
        return robots[name]

    def _get(self, observation: dict[str, Any], key: str) -> Any:
        if key not in observation:
            raise UserError(
                f"observation: {key!r} is missing; got {sorted(map(str, observation))}."
            )
        return observation[key]


def _model(checkpoint: Path, config: dict[str, Any]) -> Model:
    """The model of a checkpoint, by the preset that its training names."""
    if config["pretraining"].get("preset", "small") == "small":
        from components.serving.small import SmallModel

        return SmallModel(checkpoint, config)
    from components.serving.full import FullModel

    return FullModel(checkpoint, config)


def load(checkpoint: Path, embodiment: str | None = None) -> Policy:
    """The policy of a checkpoint folder; `embodiment` chooses among the robots it knows."""
    torch.set_num_threads(1)
    return Policy(checkpoint, embodiment)


def _picture(image: npt.NDArray[Any], size_px: int, key: str) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (3, size, size) in -1..1, scaled as the training view was."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{key}: expected uint8 (H, W, 3); got {image.dtype} {image.shape}.")
    if image.shape[:2] != (size_px, size_px):
        import av

        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        image = frame.reformat(size_px, size_px, interpolation="AREA").to_ndarray()
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 127.5 - 1


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a checkpoint's JSON file; {error}") from error
