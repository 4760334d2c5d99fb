"""The download command against a hub of the test's own: once over the network, afterwards without it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import served

ROOT = Path(__file__).resolve().parents[1]
NAME, COMMIT = "someone/Tiny", "1" * 40


class FakeHub(ThreadingHTTPServer):
    """Serves one model the way the hub does: its list of files, and each of them.

    Attributes:
        folder: of the model.
        requests: method and path of everything that was asked for.
    """

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        names = sorted(file.name for file in self.server.folder.iterdir())
        if path.startswith(f"/api/models/{NAME}/tree/"):
            sizes = [(name, (self.server.folder / name).stat().st_size) for name in names]
            rows = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes]
            return self._send(json.dumps(rows).encode(), {}, with_body)
        if path.startswith(f"/api/models/{NAME}"):
            row = {"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self._send(json.dumps(row).encode(), {"Content-Type": "application/json"}, with_body)
        name = path.rpartition("/")[2]
        if path.startswith(f"/{NAME}/resolve/") and name in names:
            body = (self.server.folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self._send(body, headers, with_body)
        self.send_error(404, "Entry not found")
        return None

    def _send(self, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for field, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(field, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path) -> Iterator[FakeHub]:
    folder = served.base_model(tmp_path / "published")
    (folder / "weights.bin").write_bytes(b"in another format")
    with FakeHub(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def download(tmp_path: Path, hub: FakeHub, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "vgrout_jax.download", *arguments]
    return subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True, timeout=300)


def test_a_model_is_fetched_once_and_then_used_without_a_network(hub, tmp_path):
    first = download(tmp_path, hub, NAME)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home") and folder.name == COMMIT
    published = {file.name: file.read_bytes() for file in hub.folder.iterdir()}
    unwanted = published.pop("weights.bin")
    assert unwanted and {file.name: file.read_bytes() for file in folder.iterdir()} == published
    assert any(request.startswith("GET") and "model.safetensors" in request for request in hub.requests)
    hub.requests.clear()
    again = download(tmp_path, hub, NAME)
    assert (again.returncode, again.stdout, hub.requests) == (0, first.stdout, [])
    offline = download(tmp_path, hub, NAME, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert (offline.returncode, offline.stdout) == (0, first.stdout)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["someone/Else"], "error: model.path: someone/Else is neither a local folder nor complete in the cache"),
        (["no name"], "error: model.path must be a folder or a hub name"),
        (["one/a", "two/b"], "error: unrecognized arguments: two/b"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub, tmp_path, arguments, message):
    done = download(tmp_path, hub, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(message)


def test_a_model_that_no_run_could_use_is_refused(hub, tmp_path):
    file = hub.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    done = download(tmp_path, hub, NAME)
    assert done.returncode == 1 and "is truncated or corrupt at tensor" in done.stderr.splitlines()[-1]
