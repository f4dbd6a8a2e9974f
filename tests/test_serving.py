"""The policy server against its protocol: bytes, errors, health, its end, the real client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.sync.client import connect

from components.errors import DataError, TemporaryError, UserError
from components.serving import wire
from components.serving.client import PolicyClient, PolicyError
from components.serving.process import served
from tests import scripted_policy

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "tests.scripted_policy"]
TARGETS = {"go": [0.1, 0.6, 0.2, -1.0], "stay": [0.0, 0.0, 0.0, 0.0]}


def observation(prompt: str = "go") -> dict[str, Any]:
    return {
        "observation/top": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
        "observation/state": np.array([0.0, 0.6, 0.2, 1.0], np.float32),
        "prompt": prompt,
        "seed": 7,
    }


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving") / "server.log"


@pytest.fixture(scope="module")
def uri(log: Path) -> Iterator[str]:
    folder = scripted_policy.write(log.parent / "checkpoint", TARGETS)
    with served([*COMMAND, str(folder)], log) as address:
        yield address


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[str]:
    folder = scripted_policy.write(tmp_path / "checkpoint", TARGETS, delay_s=1.5)
    with served([*COMMAND, str(folder)], tmp_path / "log") as address:
        yield address


# --- the wire ---------------------------------------------------------------------------------


def test_bytes_of_an_array_are_those_of_openpi() -> None:
    expected = (
        b"\x81\xa1x\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x02\x01\x02"
        b"\xc4\x05dtype\xa3|u1\xc4\x05shape\x92\x01\x02"
    )
    assert wire.encode({"x": np.array([[1, 2]], np.uint8)}) == expected
    assert wire.decode(expected)["x"].tolist() == [[1, 2]]


def test_scalars_keep_their_dtype_except_float64() -> None:
    sent = {"f": np.float32(0.1), "b": np.bool_(True), "d": np.float64(0.1), "n": None}
    got = wire.decode(wire.encode(sent))
    assert got["f"].dtype == np.float32 and got["f"] == np.float32(0.1)
    assert got["b"].dtype == np.bool_ and got["b"]
    assert type(got["d"]) is float and got["d"] == 0.1
    assert got["n"] is None


NUMBERS = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(),
    arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(sizes=(16, 32, 64)),
    arrays.byte_string_dtypes(),
    arrays.unicode_string_dtypes(),
)


@given(NUMBERS.flatmap(lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=0, min_side=0))))
def test_every_array_returns_as_it_was_sent(array: np.ndarray) -> None:
    got = wire.decode(wire.encode({"a": array}))["a"]
    assert got.dtype == array.dtype and got.shape == array.shape
    assert got.tobytes() == array.tobytes()
    assert got.flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([1 + 2j]),
        np.zeros(2, [("a", "i4")]),
        np.complex64(1),
        {1, 2},
        Path("x"),
        2**70,
    ],
)
def test_what_the_wire_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(wire.WireError):
        wire.encode({"x": value})


def crafted(**changes: object) -> bytes:
    array = {"__ndarray__": True, "data": b"\x01\x02", "dtype": "|u1", "shape": [1, 2], **changes}
    return msgpack.packb({k.encode(): v for k, v in array.items() if v is not ...})


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "|O"},
        {"dtype": "|V2"},
        {"dtype": "<c8"},
        {"dtype": "i4,f4"},
        {"dtype": "nonsense"},
        {"dtype": 7},
        {"dtype": ...},
        {"data": "text"},
        {"data": ...},
        {"shape": [3]},
        {"shape": [-1, -2]},
        {"shape": [2**62, 2**62]},
        {"shape": [0, 2**63], "data": b""},
        {"shape": [0] * 200, "data": b""},
        {"shape": [1.0, 2]},
        {"shape": "12"},
        {"shape": ...},
    ],
)
def test_a_lying_array_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(crafted(**changes))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("<f4", 3.402823669209385e38), ("<f2", 1e6), ("|u1", 256), ("<i8", 2**63), ("<f4", "one")],
)
def test_a_scalar_that_its_dtype_cannot_hold_is_refused(dtype: str, value: object) -> None:
    told = {b"__npgeneric__": True, b"data": value, b"dtype": dtype}
    with pytest.raises(wire.WireError, match="scalar data: expected"):
        wire.decode(msgpack.packb(told))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_the_typed_error(data: bytes) -> None:
    try:
        wire.decode(data)
    except wire.WireError as error:
        assert str(error)


VALID = wire.encode({**observation(), "n": np.float32(1), "l": [1, {"a": np.zeros((2, 0))}]})


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_damaged_message_decodes_or_raises_the_typed_error(data: st.DataObject) -> None:
    damaged = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(VALID) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.decode(bytes(damaged[: data.draw(st.integers(0, len(VALID)))]))
    except wire.WireError as error:
        assert str(error)


# --- the server -------------------------------------------------------------------------------


def test_metadata_comes_first_and_each_observation_is_answered(uri: str) -> None:
    with connect(uri, compression=None, proxy=None) as raw:
        first = raw.recv()
        assert isinstance(first, bytes)
        assert wire.decode(first) == {"policy": "scripted", "targets": 2}
        raw.send(wire.encode(observation()))
        result = wire.decode(raw.recv())
        assert result["actions"].shape == (17, 4)  # 0.1 m at 6 mm a step
        np.testing.assert_allclose(result["actions"][:, 0], 0.1 / 17 / 0.01, rtol=1e-6)
        assert result["event_remaining"] == 17 and result["seed"] == 7
        assert set(result["server_timing"]) == {"infer_ms"}
        raw.send(wire.encode(observation()))
        assert set(wire.decode(raw.recv())["server_timing"]) == {"infer_ms", "prev_total_ms"}


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (wire.encode(observation("crash")), "InferenceError: the policy failed"),
        (wire.encode(observation("fly")), "DataError: prompt 'fly'"),
        (b"\xc1", "WireError: malformed message of 1 bytes"),
        (wire.encode([1, 2]), "WireError: expected a map; got list"),
        ("text", "WireError: expected a binary frame"),
    ],
)
def test_an_error_is_one_line_of_text_then_close_1011(
    uri: str, log: Path, frame: str | bytes, says: str
) -> None:
    with connect(uri, compression=None, proxy=None) as raw:
        raw.recv()
        raw.send(frame)
        reply = raw.recv()
        assert isinstance(reply, str) and reply.startswith(says)
        assert "Traceback" not in reply and "secret" not in reply and "\n" not in reply
        with pytest.raises(ConnectionClosedError) as closed:
            raw.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
    if b"crash" in frame if isinstance(frame, bytes) else False:
        assert "a secret of the server" in log.read_text()
    with PolicyClient(uri) as other:  # the server goes on
        assert len(other.infer(observation())["actions"]) == 17


def get(uri: str, path: str, timeout_s: float = 5.0) -> tuple[int, str]:
    connection = http.client.HTTPConnection(uri.removeprefix("ws://"), timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_health_over_http_and_nothing_else(uri: str) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert get(uri, path) == (200, "OK\n")
    assert get(uri, "/")[0] == 426  # upgrade required


def test_health_and_pings_are_answered_during_a_slow_inference(slow: str) -> None:
    answers: list[dict[str, Any]] = []
    options: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.4}
    with connect(slow, compression=None, proxy=None, **options) as raw:
        raw.recv()

        def infer() -> None:
            raw.send(wire.encode(observation()))
            answers.append(wire.decode(raw.recv()))

        thread = threading.Thread(target=infer)
        thread.start()
        time.sleep(0.3)
        start_s = time.monotonic()
        assert get(slow, "/healthz") == (200, "OK\n")
        assert time.monotonic() - start_s < 0.5
        assert not answers  # it was still at work
        thread.join()
    assert answers[0]["server_timing"]["infer_ms"] > 1400


def test_two_clients_at_once_get_their_own_answers(uri: str) -> None:
    with PolicyClient(uri) as one, PolicyClient(uri) as two:
        got: dict[str, list[int]] = {"go": [], "stay": []}

        def ask(client: PolicyClient, prompt: str) -> None:
            for _ in range(20):
                got[prompt].append(client.infer(observation(prompt))["event_remaining"])

        threads = [
            threading.Thread(target=ask, args=(client, prompt))
            for client, prompt in ((one, "go"), (two, "stay"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {"go": [17] * 20, "stay": [100] * 20}


def test_a_frame_over_the_limit_closes_that_client_only(uri: str) -> None:
    with connect(uri, compression=None, proxy=None) as raw:
        raw.recv()
        with pytest.raises(ConnectionClosed) as closed:
            raw.send(b"\0" * (64 * 1024 * 1024 + 1))
            raw.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    assert get(uri, "/healthz") == (200, "OK\n")


# --- our client -------------------------------------------------------------------------------


def test_client_says_what_the_server_refused(uri: str) -> None:
    with PolicyClient(uri) as client, pytest.raises(PolicyError, match="prompt 'fly'"):
        client.infer(observation("fly"))


def test_client_says_that_nothing_listens_and_that_an_address_is_wrong() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(TemporaryError, match=f"{port}: nothing listens there after 0.3 s"):
            PolicyClient(f"ws://127.0.0.1:{port}", connect_timeout_s=0.3)
    with pytest.raises(UserError, match="expected ws://host:port"):
        PolicyClient("localhost")


def test_client_gives_up_on_a_slow_answer(slow: str) -> None:
    client = PolicyClient(slow, timeout_s=0.3)
    with client, pytest.raises(TemporaryError, match=r"no answer within 0\.3 s"):
        client.infer(observation())


# --- its life as a process --------------------------------------------------------------------


def start(folder: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    """A server of our own and its address, as its first line of output says it."""
    process = subprocess.Popen(
        [*COMMAND, str(folder), "--port", "0", *more], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


def test_sigterm_ends_it_cleanly_even_during_an_inference(tmp_path: Path) -> None:
    folder = scripted_policy.write(tmp_path / "checkpoint", TARGETS, delay_s=60)
    process, uri = start(folder)
    with process, connect(uri, compression=None, proxy=None) as raw:
        raw.recv()
        raw.send(wire.encode(observation()))
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            raw.recv(timeout=5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001  # going away
        assert process.wait(timeout=5) == 0


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    folder = scripted_policy.write(tmp_path / "checkpoint", TARGETS)
    code = (
        "import time; from pathlib import Path; from components.serving.process import served\n"
        f"with served({[*COMMAND, str(folder)]!r}, Path({str(tmp_path / 'log')!r})) as uri:\n"
        "    print(uri, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with parent:
        assert parent.stdout is not None
        uri = parent.stdout.readline().strip()
        assert get(uri, "/healthz") == (200, "OK\n")
        parent.kill()
    for _ in range(50):
        try:
            get(uri, "/healthz", timeout_s=1)
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent by 5 s")


def test_an_occupied_port_and_a_missing_checkpoint_are_said(tmp_path: Path) -> None:
    folder = scripted_policy.write(tmp_path / "checkpoint", TARGETS)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        ended = subprocess.run(
            [*COMMAND, str(folder), "--port", port],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert ended.returncode == UserError.exit_code
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    with pytest.raises(UserError, match="before it listened"):  # noqa: SIM117
        with served([*COMMAND, str(tmp_path / "none")], tmp_path / "log"):
            pass
    assert "No such file" in (tmp_path / "log").read_text()


# --- the real client --------------------------------------------------------------------------

CONVERSATION = """
import json, sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from openpi_client import msgpack_numpy

host, port = sys.argv[1].removeprefix("ws://").split(":")
policy = WebsocketClientPolicy(host, int(port))
observation = {
    "observation/top": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
    "observation/state": np.array([0.0, 0.6, 0.2, 1.0], np.float32),
    "prompt": "go",
    "seed": 7,
}
result = policy.infer(observation)
second = policy.infer(observation)
try:
    policy.infer({**observation, "prompt": "fly"})
except RuntimeError as error:
    refused = str(error)
print(json.dumps({
    "numpy": np.__version__,
    "metadata": policy.get_server_metadata(),
    "actions": result["actions"].tolist(),
    "dtype": str(result["actions"].dtype),
    "timing": sorted(second["server_timing"]),
    "refused": refused,
    "packed": msgpack_numpy.packb(observation).hex(),
}))
"""


@pytest.fixture(scope="session")
def robot_python() -> Path:
    """The Python of `.venv-openpi/`, made on the first call (10 s) or when pins change."""
    folder, pins = ROOT / ".venv-openpi", (Path(__file__).parent / "openpi-client.txt").read_text()
    python, mark = folder / "bin/python", folder / "pins.txt"
    if mark.is_file() and mark.read_text() == pins:
        return python
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    make = [sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)]
    subprocess.run(make, check=True)
    installed = subprocess.run(
        [*pip, "--disable-pip-version-check", "--retries", "1", "-r", "tests/openpi-client.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"openpi-client cannot be installed here: {installed.stderr.strip()[-300:]}")
    mark.write_text(pins)
    return python


def test_the_real_openpi_client_talks_to_our_server(uri: str, robot_python: Path) -> None:
    ended = subprocess.run(
        [str(robot_python), "-c", CONVERSATION, uri],
        env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    got = json.loads(ended.stdout)
    assert got["numpy"].startswith("1.")
    assert got["metadata"] == {"policy": "scripted", "targets": 2}
    with PolicyClient(uri) as ours:
        np.testing.assert_array_equal(got["actions"], ours.infer(observation())["actions"])
    assert got["dtype"] == "float32"
    assert got["timing"] == ["infer_ms", "prev_total_ms"]
    assert "DataError: prompt 'fly'" in got["refused"]
    assert got["packed"] == wire.encode(observation()).hex()


def test_errors_of_this_package_have_their_class() -> None:
    assert issubclass(wire.WireError, DataError) and issubclass(PolicyError, DataError)
