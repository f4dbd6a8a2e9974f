"""Clustering, and the sentence embeddings it shares with pretraining."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

from components import lerobot, outputs, records, sentences
from components.clustering import descriptors, groups, names, stage
from components.episodes import Episode
from components.errors import DataError
from components.row_shards import encoded

FPS = 20.0
CONFIG = stage.Config(
    joint_clusters=6,
    action_clusters=3,
    caption_levels=["task", "action"],
    picture_share=0.2,
    restarts=5,
    seed=0,
)


# --- sentences -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of a library that only this test imports
def test_sentences_agree_with_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    texts = [
        "open the door",
        "A much longer sentence, with commas: close it, again.",
        "",
        "o" * 2000,
    ]
    reference = SentenceTransformer(str(sentences.folder()), device="cpu").encode(texts)
    ours = sentences.embed(texts)
    assert ours.dtype == np.float32
    assert ours.shape == (4, sentences.WIDTH)
    np.testing.assert_allclose(ours, reference, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-6)


def test_paraphrases_are_closer_than_other_actions() -> None:
    pairs = [
        ("open the door", "pull the door open"),
        ("close the gripper around the handle", "grasp the handle"),
        ("move the arm up", "raise the arm"),
    ]
    first, second = (sentences.embed([pair[i] for pair in pairs]) for i in (0, 1))
    cosine = first @ second.T
    for row, other in itertools.permutations(range(len(pairs)), 2):
        assert cosine[row, row] > cosine[row, other] + 0.1


def test_a_vector_does_not_depend_on_the_other_texts() -> None:
    alone = sentences.embed(["press the button"])
    company = sentences.embed(["x " * 200, "press the button", "go", "press the button"])
    assert np.array_equal(company[1], alone[0])
    assert np.array_equal(company[1], company[3])
    assert sentences.embed([]).shape == (0, sentences.WIDTH)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        sentences.check(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match=f"expected sha256 {sentences.DIGEST}, got"):
        sentences.check(tmp_path)
    sentences.check(sentences.folder())


# --- k-means -------------------------------------------------------------------------------------


def blobs() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2, 3], [40, 30, 20, 10])
    centres = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], dtype=float)
    return centres[truth] + generator.normal(size=(100, 3)) * 0.3, truth


def test_k_means_finds_what_is_there_and_labels_by_size() -> None:
    points, truth = blobs()
    labels, explained = groups.group(points, 4, seed=0, restarts=5)
    assert np.array_equal(labels, truth)  # the fixture's labels are sorted by size
    within = sum(((points[truth == i] - points[truth == i].mean(0)) ** 2).sum() for i in range(4))
    total = ((points - points.mean(axis=0)) ** 2).sum()
    assert explained == pytest.approx(1 - within / total, abs=1e-4)


def test_k_means_does_not_depend_on_seed_of_numpy_or_on_the_order_of_rows() -> None:
    points, truth = blobs()
    again, _ = groups.group(points, 4, seed=0, restarts=5)
    np.random.seed(99)  # the global state must not matter
    assert np.array_equal(again, groups.group(points, 4, seed=0, restarts=5)[0])
    order = np.random.default_rng(0).permutation(len(points))
    shuffled, _ = groups.group(points[order], 4, seed=0, restarts=5)
    assert adjusted_rand_score(truth[order], shuffled) == 1.0


def test_k_is_clipped_to_the_number_of_different_points() -> None:
    points = np.repeat([[0.0, 1.0], [2.0, 3.0], [-0.0, 1.0]], [3, 5, 2], axis=0)
    labels, explained = groups.group(points, 50, seed=0, restarts=2)
    assert labels.tolist() == [0] * 3 + [1] * 5 + [0] * 2  # 5 and 5: the first that occurs is 0
    assert explained == pytest.approx(1.0)
    assert groups.group(np.zeros((4, 2)), 3, 0, 2)[0].tolist() == [0] * 4


def test_canonical_labels_are_the_same_for_every_numbering() -> None:
    labels = np.array([2, 2, 0, 1, 1, 1, 3])
    for numbering in itertools.permutations(range(4)):
        renumbered = np.array(numbering)[labels]
        assert groups.canonical(renumbered).tolist() == [1, 1, 2, 0, 0, 0, 3]


# --- descriptors ---------------------------------------------------------------------------------


def arm(motion: np.ndarray, gripper: np.ndarray | None = None, embodiment: str = "arm") -> Episode:
    """An episode whose state is x, y, z (and a gripper), 20 Hz."""
    state = motion if gripper is None else np.column_stack([motion, gripper])
    return Episode(
        episode_id="e",
        embodiment=embodiment,
        task="t",
        fps=FPS,
        timestamps_s=np.arange(len(motion)) / FPS,
        state=state.astype(np.float32),
        action=np.zeros((len(motion), 1), dtype=np.float32),
        state_names=("x", "y", "z") if gripper is None else ("x", "y", "z", "gripper"),
        action_names=("a",),
    )


def test_kinematics_of_a_circle() -> None:
    angle = np.linspace(0, 2 * np.pi, 2001)
    circle = np.column_stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)])
    found = descriptors.measure(arm(circle, angle / (2 * np.pi)), 0, 2000)
    assert found.path == pytest.approx(2 * np.pi, rel=1e-3)
    assert np.linalg.norm(found.displacement) == pytest.approx(0, abs=1e-6)
    assert found.duration_s == pytest.approx(2000 / FPS)
    assert found.speed == pytest.approx(2 * np.pi / (2000 / FPS), rel=1e-3)
    assert found.gripper == pytest.approx(1.0)
    half = descriptors.measure(arm(circle), 0, 1000)
    np.testing.assert_allclose(half.displacement, [-2, 0, 0], atol=1e-5)
    assert half.gripper == 0.0


def test_mirrored_fingers_do_not_cancel_out() -> None:
    way = np.linspace(0, 1, 50)
    open_ = np.linspace(0.04, 0.0, 50)
    for fingers in (open_[:, None], np.column_stack([open_, -open_])):
        episode = arm(np.column_stack([way, way, way]), open_)
        episode = dataclasses.replace(
            episode,
            state=np.column_stack([way, way, way, fingers]).astype(np.float32),
            state_names=("x", "y", "z", "finger_1", "finger_2")[: 3 + fingers.shape[1]],
        )
        assert descriptors.measure(episode, 0, 50).gripper == pytest.approx(-0.04, abs=1e-6)


def test_joints_are_measured_without_wraps_rates_and_forces() -> None:
    turn = np.pi - 0.01 + 0.02 * np.sin(np.arange(200))
    wrapped = (turn + np.pi) % (2 * np.pi) - np.pi
    force = 40 * np.sin(np.arange(200))
    episode = dataclasses.replace(
        arm(np.zeros((200, 3))),
        state=np.column_stack([0 * turn, wrapped, force]).astype(np.float32),
        state_names=("joint_1", "joint_2", "joint_2_effort"),
    )
    found = descriptors.measure(episode, 0, 200)
    assert found.axes == ("joint_1", "joint_2")
    assert found.path == pytest.approx(np.abs(np.diff(turn)).sum(), rel=1e-3)


def moves(scale: float, embodiment: str) -> list[descriptors.Kinematics]:
    generator = np.random.default_rng(4)
    ends = generator.normal(size=(12, 3))
    return [
        descriptors.measure(
            arm(np.linspace(0, 1, 11)[:, None] * end * scale, np.linspace(0, g, 11), embodiment),
            0,
            10,
        )
        for end, g in zip(ends, np.linspace(-1, 1, 12), strict=True)
    ]


def table(events: list[descriptors.Kinematics]) -> pa.Table:
    return encoded(
        pa.Table.from_pylist([each.row() for each in events], schema=descriptors.MEASURED)
    )


def test_units_do_not_matter() -> None:
    metres, millimetres = moves(1.0, "a"), moves(1000.0, "b")
    features = descriptors.action_features(table(metres + millimetres))
    np.testing.assert_allclose(features[:12], features[12:], atol=1e-4)
    assert features.shape == (24, len(descriptors.SCALARS) + 3)
    assert np.abs(features).max() <= descriptors.LIMIT


def test_robots_with_other_joints_live_in_columns_of_their_own() -> None:
    joints = Episode(
        episode_id="j",
        embodiment="joints",
        task="t",
        fps=FPS,
        timestamps_s=np.arange(11) / FPS,
        state=np.linspace(0, 1, 11)[:, None].astype(np.float32) * np.ones((1, 5), np.float32),
        action=np.zeros((11, 5), dtype=np.float32),
        state_names=tuple(f"joint_{i}" for i in range(5)),
        action_names=tuple(f"joint_{i}" for i in range(5)),
    )
    events = [
        *moves(1.0, "arm"),
        descriptors.measure(joints, 0, 5),
        descriptors.measure(joints, 2, 9),
    ]
    features = descriptors.action_features(table(events))
    assert features.shape == (14, 4 + 3 + 5)
    assert not features[:12, 7:].any()
    assert not features[12:, 4:7].any()
    assert np.isfinite(features).all()
    assert (features[12:, 7:] > 0).all()


def test_a_robot_that_is_all_gripper_has_no_direction() -> None:
    alone = replace(
        arm(np.linspace(0, 1, 11)[:, None], embodiment="hand"), state_names=("gripper",)
    )
    events = table([*moves(1.0, "arm"), descriptors.measure(alone, 0, 5)])
    features = descriptors.action_features(events)
    assert features.shape == (13, 4 + 3) and not features[12, 4:].any()
    labels = np.array([0] * 12 + [1])
    assert "no clear direction" in names.action_names(labels, events, features)["1"]


def test_picture_share_is_the_share_of_variance() -> None:
    generator = np.random.default_rng(0)
    words = generator.normal(size=(50, 384)).astype(np.float32) * 3
    pictures = generator.uniform(size=(50, 192)).astype(np.float32)
    for share in (0.25, 0.5):
        joint = descriptors.joint_features(words, np.arange(50), pictures, share)
        variance = joint.var(axis=0)
        assert variance[384:].sum() / variance.sum() == pytest.approx(share, abs=1e-6)
    assert descriptors.joint_features(words, np.arange(50), pictures, 0.0).shape == (50, 384)


def test_fewer_columns_keep_every_distance() -> None:
    words = np.random.default_rng(0).normal(size=(30, 384)).astype(np.float32)
    words[7] = words[3]
    found = descriptors.compact(words)
    assert found.shape == (30, 30)
    np.testing.assert_allclose(cdist(found, found), cdist(words, words), atol=1e-4)
    many = np.random.default_rng(0).normal(size=(500, 384)).astype(np.float32)
    np.testing.assert_allclose(
        cdist(*[descriptors.compact(many)] * 2), cdist(many, many), atol=1e-4
    )


def test_noise_of_a_codec_is_not_blown_up_and_missing_pictures_are_neutral() -> None:
    generator = np.random.default_rng(0)
    words = generator.normal(size=(50, 384)).astype(np.float32)
    still = (0.5 + generator.normal(size=(50, 192)) * 1e-4).astype(np.float32)
    still[0] = np.nan
    joint = descriptors.joint_features(words, np.arange(50), still, 0.5)
    assert joint[:, 384:].var(axis=0).sum() < 0.01 * joint[:, :384].var(axis=0).sum()
    np.testing.assert_allclose(joint[0, 384:], 0.0, atol=1e-9)


def test_names_say_direction_gripper_and_pace() -> None:
    up = [descriptors.measure(arm(t * [0, 0, 1.0], np.ones(11)), 0, 10) for t in ramps(6)]
    close = [descriptors.measure(arm(t * [0.001, 0, 0], 1 - t[:, 0]), 0, 10) for t in ramps(6)]
    events = table(up + close)
    labels = np.repeat([0, 1], 6)
    found = names.action_names(labels, events, descriptors.action_features(events))
    assert found["0"].startswith("moves +z")
    assert "gripper value falls" in found["1"]
    assert found["1"].startswith("no clear direction")
    captions = ["b", "a", "a", "c", "c", "c", "a", "a", "z", "z", "z", "a"]
    assert names.caption_names(labels, captions) == {"0": "c", "1": "a"}
    assert names.caption_names(np.array([0, 1, 2]), ["a", "a", "b"])["1"] == "a (2)"


def ramps(number: int) -> list[np.ndarray]:
    return [np.linspace(0, 1, 11)[:, None] * (1 + 0.01 * i) for i in range(number)]


# --- the stage -----------------------------------------------------------------------------------


def video(path: Path, colour: int, frames: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=int(FPS))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(frames):
            image = np.full((32, 32, 3), colour, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def recordings(folder: Path, robot: str) -> list[lerobot.Recording]:
    """Four episodes: 20 frames up, 20 frames of closing, 20 frames to the right."""
    up, hold, right = (
        np.linspace(0, 1, 20)[:, None] * v for v in ([0, 0, 0.2], [0] * 3, [0.3, 0, 0])
    )
    motion = np.concatenate([up, up[-1] + hold, up[-1] + right])
    gripper = np.concatenate([np.ones(20), np.linspace(1, 0.2, 20), np.full(20, 0.2)])
    made = []
    for index in range(4):
        state = np.column_stack([motion * (1 + 0.02 * index), gripper])
        made.append(
            lerobot.Recording(
                task=("open the door", "press the button")[index % 2],
                timestamps_s=np.arange(60) / FPS,
                state=state.astype(np.float32),
                action=np.diff(state, axis=0, append=state[-1:]).astype(np.float32),
                videos={"observation.images.top": video(folder / f"{index}.mp4", 60 * index, 60)}
                if robot == "arm"
                else {},
            )
        )
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of two robots (the second without camera or end effector), events and captions."""
    root = tmp_path_factory.mktemp("clustering")
    manifest: list[dict[str, Any]] = []
    for robot, axes in (("arm", ("x", "y", "z")), ("dof", ("j0", "j1", "j2"))):
        (root / "episodes" / robot).mkdir(parents=True)
        made = recordings(root, robot)
        lerobot.write(
            root / "episodes" / robot,
            made,
            robot_type=robot,
            fps=FPS,
            state_names=(*axes, "gripper"),
            action_names=(*axes, "gripper"),
        )
        manifest += [
            {
                "episode_id": f"{robot}{index}",
                "embodiment": robot,
                "episode_index": index,
                "task": recording.task,
                "n_frames": 60,
                "fps": FPS,
            }
            for index, recording in enumerate(made)
        ]
    records.write(root / "episodes/manifest.parquet", manifest, records.MANIFEST, "episode_id")
    events, captions = [], []
    for row in manifest:
        for position, words in enumerate(("move up", "close the gripper", "move to the right")):
            start_s, end_s = position * 1.0, min(position + 1.0, 59 / FPS)
            event_id = records.event_id(row["episode_id"], start_s, end_s)
            events.append(
                {
                    "event_id": event_id,
                    "episode_id": row["episode_id"],
                    "start_s": start_s,
                    "end_s": end_s,
                    "start_frame": 20 * position,
                    "end_frame": 20 * position + 20,
                    "kind": "motion",
                }
            )
            captions += [
                {"event_id": event_id, "level": level, "text": text}
                for level, text in (
                    ("task", row["task"]),
                    ("subtask", words),
                    ("action", words),
                    ("segment", words),
                )
            ]
    records.write(root / "events/events.parquet", events, records.EVENTS, "event_id")
    records.write(root / "captions/captions.parquet", captions, records.CAPTIONS, "event_id")
    return root


def cluster(root: Path, out: Path, config: stage.Config = CONFIG) -> stage.Report:
    return stage.run(root / "episodes", root / "events", root / "captions", out, config=config)


def test_the_stage_groups_what_is_said_and_what_is_done(inputs: Path, tmp_path: Path) -> None:
    words_only = CONFIG.model_copy(update={"picture_share": 0.0})
    report = cluster(inputs, tmp_path / "clusters", words_only)
    table = records.read(tmp_path / "clusters/clusters.parquet", records.CLUSTERS)
    assert table.schema.equals(records.CLUSTERS)
    clusters = {row["event_id"]: row for row in table.to_pylist()}
    captions = records.read(inputs / "captions/captions.parquet", records.CAPTIONS).to_pylist()
    said = {row["event_id"]: row["text"] for row in captions if row["level"] == "action"}
    task = {row["event_id"]: row["text"] for row in captions if row["level"] == "task"}
    ids = list(clusters)
    assert sorted(said) == ids
    action = [clusters[i]["action_cluster"] for i in ids]
    joint = [clusters[i]["joint_cluster"] for i in ids]
    assert adjusted_rand_score([said[i] for i in ids], action) == 1.0
    assert adjusted_rand_score([f"{task[i]} {said[i]}" for i in ids], joint) == 1.0
    named = json.loads((tmp_path / "clusters/names.json").read_text())
    assert set(named["joint"]) == {str(label) for label in set(joint)}
    assert sum("gripper value falls" in name for name in named["action"].values()) == 1
    assert sum(report.joint_sizes.values()) == report.events == 24


def test_pictures_separate_what_words_do_not(inputs: Path, tmp_path: Path) -> None:
    """Each of the arm's four episodes has its own colour; the other robot has no camera."""
    mostly_seen = CONFIG.model_copy(update={"picture_share": 0.95, "joint_clusters": 5})
    cluster(inputs, tmp_path / "clusters", mostly_seen)
    events = records.read(inputs / "events/events.parquet", records.EVENTS).to_pylist()
    scene = {
        row["event_id"]: "unseen" if row["episode_id"].startswith("dof") else row["episode_id"]
        for row in events
    }
    rows = records.read(tmp_path / "clusters/clusters.parquet", records.CLUSTERS).to_pylist()
    truth, found = zip(*((scene[r["event_id"]], r["joint_cluster"]) for r in rows), strict=True)
    assert adjusted_rand_score(truth, found) == 1.0


def test_the_same_inputs_give_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    cluster(inputs, tmp_path / "a")
    shuffled = records.read(inputs / "events/events.parquet", records.EVENTS).to_pylist()[::-1]
    outputs.write_table(
        tmp_path / "events/events.parquet",
        records.pa.Table.from_pylist(shuffled, schema=records.EVENTS),
    )
    stage.run(
        inputs / "episodes", tmp_path / "events", inputs / "captions", tmp_path / "b", config=CONFIG
    )
    assert outputs.sha256_folder(tmp_path / "a") == outputs.sha256_folder(tmp_path / "b")


def test_a_missing_caption_is_named_and_nothing_is_written(inputs: Path, tmp_path: Path) -> None:
    rows = records.read(inputs / "captions/captions.parquet", records.CAPTIONS).to_pylist()
    lost = next(row for row in rows if row["level"] == "action")
    rows.remove(lost)
    records.write(tmp_path / "captions/captions.parquet", rows, records.CAPTIONS, "event_id")
    with pytest.raises(DataError, match=rf"1 caption.*{lost['event_id']} \(action\)"):
        stage.run(
            inputs / "episodes",
            inputs / "events",
            tmp_path / "captions",
            tmp_path / "clusters",
            config=CONFIG,
        )
    assert not list(tmp_path.glob("*clusters*"))


def test_no_captions_at_all_are_missing_captions(inputs: Path, tmp_path: Path) -> None:
    records.write(tmp_path / "captions/captions.parquet", [], records.CAPTIONS, "event_id")
    with pytest.raises(DataError, match=r"caption\(s\) are missing"):
        stage.run(
            inputs / "episodes",
            inputs / "events",
            tmp_path / "captions",
            tmp_path / "clusters",
            config=CONFIG,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end_frame": 61}, "do not lie in episode"),
        ({"start_frame": 40, "end_frame": 40}, "do not lie in episode"),
        ({"episode_id": "gone"}, "no episode gone"),
    ],
)
def test_events_that_do_not_fit_their_episode(
    inputs: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = records.read(inputs / "events/events.parquet", records.EVENTS).to_pylist()
    rows[0].update(change)
    records.write(tmp_path / "events/events.parquet", rows, records.EVENTS, "event_id")
    with pytest.raises(DataError, match=message):
        stage.run(
            inputs / "episodes",
            tmp_path / "events",
            inputs / "captions",
            tmp_path / "clusters",
            config=CONFIG,
        )


def test_no_events(inputs: Path, tmp_path: Path) -> None:
    records.write(tmp_path / "events/events.parquet", [], records.EVENTS, "event_id")
    with pytest.raises(DataError, match="no events"):
        stage.run(
            inputs / "episodes",
            tmp_path / "events",
            inputs / "captions",
            tmp_path / "clusters",
            config=CONFIG,
        )


def test_what_was_measured_and_said_before_is_not_measured_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = cluster(inputs, tmp_path / "first")

    def never(*_: Any) -> Any:
        raise AssertionError("this was kept")

    monkeypatch.setattr(descriptors, "measure", never)
    monkeypatch.setattr(descriptors, "thumbnails", never)
    monkeypatch.setattr(sentences, "embed", never)
    assert cluster(inputs, tmp_path / "again") == report
    for name in ("clusters.parquet", "names.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    monkeypatch.setenv("WAMFLOW_STORE", str(tmp_path / "empty"))
    with pytest.raises(AssertionError, match="this was kept"):
        cluster(inputs, tmp_path / "anew")


def test_new_episodes_give_the_bytes_of_a_run_afresh(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = records.read(inputs / "events/events.parquet", records.EVENTS)
    some = table.filter(pa.array([not i.endswith("1") for i in table["episode_id"].to_pylist()]))
    assert 0 < len(some) < len(table)
    outputs.write_table(tmp_path / "events/events.parquet", some)
    paths = (inputs / "episodes", tmp_path / "events", inputs / "captions", tmp_path / "some")
    stage.run(*paths, config=CONFIG)
    measured: list[str] = []
    real = descriptors.measure
    monkeypatch.setattr(
        descriptors, "measure", lambda e, *a: measured.append(e.episode_id) or real(e, *a)
    )
    cluster(inputs, tmp_path / "grown")
    assert set(measured) == set(table["episode_id"].to_pylist()) - set(
        some["episode_id"].to_pylist()
    )
    monkeypatch.setenv("WAMFLOW_STORE", str(tmp_path / "empty"))
    cluster(inputs, tmp_path / "afresh")
    assert outputs.sha256_folder(tmp_path / "grown") == outputs.sha256_folder(tmp_path / "afresh")


def test_a_sample_finds_the_groups_of_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8)) * 10
    of = rng.integers(0, 5, 600)
    points = centres[of] + rng.normal(size=(600, 8))
    whole, explained = groups.group(points, 5, 0, 5)
    monkeypatch.setattr(groups, "SAMPLE", 60)
    labels, share = groups.group(points, 5, 0, 5)
    assert (labels == whole).all()
    assert share == pytest.approx(explained)
    assert groups.group(points[:1].repeat(100, axis=0), 5, 0, 5)[0].max() == 0
