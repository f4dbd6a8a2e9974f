"""The World Action Model as a policy: what it sees and the next event's caption in, actions out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from components.errors import DataError, UserError
from components.normalisation import Normalisation
from components.outputs import sha256
from components.sentences import embed
from models.batch import Batch
from models.wam import Shape, WorldActionModel


class Policy:
    """Weights of one checkpoint; `infer` is what the policy server calls."""

    def __init__(self, checkpoint: Path, embodiment: str | None = None) -> None:
        self.config = _json(checkpoint / "config.json")
        self.shape = Shape(**self.config["shape"])
        self.model = WorldActionModel(self.shape)
        self.model.load_state_dict(load_file(checkpoint / "model.safetensors"))
        self.model.eval()
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
            "max_steps": self.shape.max_steps,
            "event_plans": _json(checkpoint / "event_plans.json"),
        }
        named = sorted({text for plan in self.metadata["event_plans"].values() for text in plan})
        self._texts = dict(zip(named, embed(named), strict=True))  # so that no trial waits for it

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The rest of the event that `prompt` names, from what the robot sees now.

        Reads `observation/<camera>` uint8 (H, W, 3), `observation/state` (S,), `prompt`, and `seed`
        (0 when absent). Returns `actions` float32 (steps to the event's end, A) in the robot's
        units and `event_remaining`, the number of those steps. UserError for what is missing or
        misshapen.
        """
        state = np.asarray(self._get(observation, "observation/state"), dtype=np.float32)
        if state.shape != (len(self.robot["state_names"]),):
            raise UserError(
                f"observation/state: expected {len(self.robot['state_names'])} numbers "
                f"{self.robot['state_names']}; got shape {state.shape}."
            )
        batch = self._batch(observation, state, str(self._get(observation, "prompt")))
        random = torch.Generator().manual_seed(int(observation.get("seed", 0)))
        steps = self.config["pretraining"]["denoise_steps"]
        actions, length = self.model.act(batch, denoise_steps=steps, random=random)
        width = len(self.robot["action_names"])
        remaining = int(length[0])
        units = self.normalisation.action_in_units(actions[0, :remaining, :width].numpy())
        return {"actions": units, "event_remaining": remaining}

    def _batch(
        self, observation: dict[str, Any], state: npt.NDArray[np.float32], prompt: str
    ) -> Batch:
        shape = self.shape
        views = torch.zeros(1, shape.views, 3, shape.key_px, shape.key_px)
        mask = torch.zeros(1, shape.views, dtype=torch.bool)
        for view, camera in enumerate(self.config["cameras"]):
            if camera in self.robot["cameras"]:
                image = np.asarray(self._get(observation, f"observation/{camera}"))
                views[0, view] = _picture(image, shape.key_px, f"observation/{camera}")
                mask[0, view] = True
        if prompt not in self._texts:
            self._texts[prompt] = embed([prompt])[0]
        padded = np.pad(self.normalisation.state(state), (0, shape.state_width - len(state)))
        return Batch(
            keyframes=views,
            future=torch.zeros(1, shape.views, 1, 3, shape.future_px, shape.future_px),
            view_mask=mask,
            state=torch.from_numpy(padded)[None],
            actions=torch.zeros(1, shape.max_steps, shape.action_width),
            action_mask=torch.ones(1, shape.action_width, dtype=torch.bool),
            length=torch.ones(1, dtype=torch.int64),
            step_s=torch.tensor([1 / self.robot["fps"]]),
            text=torch.from_numpy(self._texts[prompt])[None],
        )

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
