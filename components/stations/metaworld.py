"""A robot station on MuJoCo and Meta-World: a Sawyer arm at a table, cameras, scripted experts.

Meta-World (Yu et al. 2019, v3 environments) steps at 80 Hz; an action is (dx, dy, dz) in units of
1 cm for each step and a gripper effort, each within -1..1. Rendering needs no GPU (OSMesa);
shadows, reflections and multisampling are off, which makes a frame cost about 6 ms instead of 80.
Goal markers are hidden, since a real camera would not see them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

os.environ.setdefault("MUJOCO_GL", "osmesa")

import mujoco
import numpy as np
import numpy.typing as npt

from components.calibration import Calibration
from components.errors import UserError
from components.stations.station import Float, Observation

SENTENCES = {
    "assembly": "put the ring on the peg",
    "basketball": "put the ball into the basket",
    "bin-picking": "move the cube into the other bin",
    "box-close": "close the box",
    "button-press": "press the button",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "press the button from above behind the wall",
    "button-press-wall": "press the button behind the wall",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "close the faucet",
    "faucet-open": "open the faucet",
    "hammer": "hammer the nail",
    "hand-insert": "put the puck into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle down from the side",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle up from the side",
    "lever-pull": "pull the lever",
    "peg-insert-side": "insert the peg into the hole",
    "peg-unplug-side": "unplug the peg",
    "pick-out-of-hole": "pick the puck out of the hole",
    "pick-place": "bring the puck to the goal",
    "pick-place-wall": "bring the puck over the wall to the goal",
    "plate-slide": "slide the plate into the goal",
    "plate-slide-back": "slide the plate back",
    "plate-slide-back-side": "slide the plate back to the side",
    "plate-slide-side": "slide the plate into the goal at the side",
    "push": "push the puck to the goal",
    "push-back": "push the puck back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "reach the goal",
    "shelf-place": "put the puck on the shelf",
    "soccer": "push the ball into the goal",
    "stick-pull": "pull the box with the stick",
    "stick-push": "push the box with the stick",
    "sweep": "sweep the puck off the table",
    "sweep-into": "sweep the puck into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}
CAMERAS = {  # name -> MuJoCo's
    "top": "topview",
    "wrist": "behindGripper",
    **{name: name for name in ("corner", "corner2", "corner3", "corner4")},
}
USUAL = ("top", "wrist")


class Truth(NamedTuple):
    """What the simulator knows of one moment; for scoring, never for a policy or a stage."""

    contact: bool  # the hand touches something that can move
    grasp: bool  # both fingers touch the same thing
    object_moving: bool
    success: bool


class MetaworldStation:
    """One simulated Sawyer; see `station.Station`."""

    embodiment = "metaworld-sawyer"
    fps = 80.0
    state_names: tuple[str, ...] = ("ee_x", "ee_y", "ee_z", "gripper")  # metres; opening 0..1
    action_names: tuple[str, ...] = ("dx", "dy", "dz", "gripper")
    tasks: Mapping[str, str] = SENTENCES

    def __init__(self, size_px: int = 96, cameras: tuple[str, ...] = USUAL) -> None:
        if unknown := [name for name in cameras if name not in CAMERAS]:
            raise UserError(
                f"metaworld: unknown cameras {unknown}; expected some of {', '.join(CAMERAS)}."
            )
        self.size_px, self.cameras = size_px, cameras
        self._envs: dict[str, Any] = {}
        self._renderers: dict[str, mujoco.Renderer] = {}
        self._task = ""
        self._success = False
        self._observation: npt.NDArray[np.float64] = np.zeros(39)
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # hides the goal

    @property
    def env(self) -> Any:
        """Meta-World's environment of the present task."""
        if not self._task:
            raise UserError("metaworld: reset(task, seed) comes before the first step.")
        return self._envs[self._task]

    def reset(self, task: str, seed: int) -> None:
        """Begin `task` with the scene of `seed`."""
        if task not in SENTENCES:
            raise UserError(
                f"metaworld: unknown task {task!r}; expected one of {', '.join(SENTENCES)}."
            )
        if task not in self._envs:
            self._envs[task] = _environment(task)
        self._task, self._success = task, False
        self.env.seed(seed)
        self._observation, _ = self.env.reset()

    def observe(self) -> Observation:
        """A picture (size_px, size_px, 3) of each camera, and (x, y, z, gripper opening)."""
        renderer = self._renderer()
        images = {}
        for name in self.cameras:
            renderer.update_scene(self.env.data, CAMERAS[name], scene_option=self._options)
            images[name] = renderer.render().copy()
        return Observation(images, self.state())

    def calibration(self) -> dict[str, Calibration]:
        """Of the cameras that are fixed to the world; the one at the wrist moves."""
        model, data, side = self.env.model, self.env.data, self.size_px
        found = {}
        for name in self.cameras:
            camera = model.camera(CAMERAS[name])
            if model.body_weldid[camera.bodyid[0]] == 0:
                focal = side / 2 / math.tan(math.radians(camera.fovy[0]) / 2)
                middle = (side - 1) / 2
                pose = np.eye(4)  # MuJoCo's cameras look along -z, y is up
                pose[:3, :3] = data.cam_xmat[camera.id].reshape(3, 3) * [1, -1, -1]
                pose[:3, 3] = data.cam_xpos[camera.id]
                found[name] = Calibration(
                    size_px=(side, side),
                    intrinsics=((focal, 0, middle), (0, focal, middle), (0, 0, 1)),
                    pose=tuple(map(tuple, pose.round(9).tolist())),
                )
        return found

    def state(self) -> Float:
        """Proprioception alone (4,), without rendering."""
        return self._observation[:4].astype(np.float32)

    def step(self, action: Float) -> None:
        """One control step of 12.5 ms."""
        clipped = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        if clipped.shape != (4,):
            raise UserError(
                f"metaworld: expected an action of 4 numbers; got shape {clipped.shape}."
            )
        self.env.curr_path_length = 0  # trials have their own limit
        self._observation, _, _, _, info = self.env.step(clipped)
        self._success = bool(info["success"])

    def succeeded(self) -> bool:
        """Meta-World's own success flag of the last step."""
        return self._success

    def expert(self) -> Float:
        """The scripted expert's next action (4,), clipped; it does see the simulator."""
        from metaworld.policies import ENV_POLICY_MAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of each value it leaves to clipping
            action = ENV_POLICY_MAP[f"{self._task}-v3"]().get_action(self._observation)
        clipped: Float = np.clip(action, -1.0, 1.0).astype(np.float32)
        return clipped

    def truth(self) -> Truth:
        """Contact, grasp and motion of objects, read from the simulator."""
        model, data = self.env.model, self.env.data
        robot = model.body_rootid[model.body("hand").id]
        movable = (model.body_weldid != 0) & (model.body_rootid != robot)
        touched: dict[str, set[int]] = {"left": set(), "right": set(), "any": set()}
        for contact in data.contact[: data.ncon]:
            bodies = [int(model.geom_bodyid[contact.geom1]), int(model.geom_bodyid[contact.geom2])]
            for hand, thing in (bodies, bodies[::-1]):
                if model.body_rootid[hand] == robot and movable[thing]:
                    touched["any"].add(thing)
                    side = model.body(hand).name[:4].replace("righ", "right")
                    touched.get(side, set()).add(thing)
        moving_joints = movable[model.jnt_bodyid]
        dofs = np.concatenate(
            [np.zeros(0, int)]
            + [
                np.arange(start, start + {0: 6, 1: 3}.get(int(kind), 1))
                for start, kind, moves in zip(
                    model.jnt_dofadr, model.jnt_type, moving_joints, strict=True
                )
                if moves
            ]
        )
        return Truth(
            contact=bool(touched["any"]),
            grasp=bool(touched["left"] & touched["right"]),
            object_moving=bool(np.any(np.abs(data.qvel[dofs]) > 0.02)),
            success=self._success,
        )

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _renderer(self) -> mujoco.Renderer:
        if self._task not in self._renderers:
            self.close()  # one OpenGL context at a time keeps memory flat
            model = self.env.model
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0
            renderer = mujoco.Renderer(model, self.size_px, self.size_px)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = False
            self._renderers[self._task] = renderer
        return self._renderers[self._task]


def _environment(task: str) -> Any:
    """A Meta-World v3 environment whose scenes come from our seeds."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium speaks of its own deprecations
        env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._partially_observable = False  # the expert needs the goal
    env.__dict__.pop("sawyer_observation_space", None)
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    return env
