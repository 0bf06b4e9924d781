"""References: paths, Hub ids, and the Hub as a small server and as a cache without a network."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgeon.errors import CheckpointError
from surgeon.store.source import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("ref", ["./org/name", "../{}/org/name", "~/org/name", "{here}/org/name"])
def test_paths(here, monkeypatch, ref):
    monkeypatch.setenv("HOME", str(here))
    path, revision = locate(ref.format(here.name, here=here))
    assert path.samefile(here / "org/name") and revision is None


def test_probing_only_where_asked(here):
    assert locate("org/name", probe=True) == (Path("org/name"), None)
    assert locate("org/name", hub=False) == (Path("org/name"), None)


@pytest.mark.parametrize("ref", ["./none", "~/none-such", "/none/such", "./" + "x" * 5000, "~no-such-user/x", "./a\0b"])
def test_no_such_path(here, ref):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        locate(ref)


@pytest.mark.parametrize("ref", ["", "@main", "org/name@", "org/name@../../x", "a/b/c", "org/na me"])
def test_neither(here, ref):
    with pytest.raises(CheckpointError, match="neither a path nor a Hub id"):
        locate(ref)


OPEN = """
import sys
from surgeon.errors import SurgeonError
from surgeon.store.source import open_source
try:
    found = open_source(sys.argv[1])
    names = sorted(path.name for path in found.root.iterdir())
    print("|".join([type(found).__name__, found.revision, *names]))
except SurgeonError as error:
    print("refused:", error)
"""


def open_elsewhere(ref, cwd, **environment):
    """Open a reference in a process of its own: huggingface_hub reads the environment once, at import."""
    root = str(Path(__file__).parents[2])
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"PYTHONPATH": root, "HF_HOME": str(cwd / "cache"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    command = [sys.executable, "-c", OPEN, ref]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def cache(root, files):
    """A hand-made cache entry of org/name."""
    entry = root / "cache/hub/models--org--name"
    snapshot = entry / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (entry / "blobs").mkdir()
    (entry / "refs").mkdir()
    (entry / "refs/main").write_text(COMMIT)
    for number, (name, raw) in enumerate(files.items()):
        (entry / "blobs" / str(number)).write_bytes(raw)
        (snapshot / name).symlink_to(f"../../blobs/{number}")


def weights(root, *names):
    save_file({name: torch.ones(2) for name in names}, root / "made.safetensors")
    return (root / "made.safetensors").read_bytes()


@pytest.mark.parametrize("ref", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
def test_offline_from_the_cache(tmp_path, ref):
    cache(tmp_path, {"config.json": b"{}", "model.safetensors": weights(tmp_path, "a")})
    said = open_elsewhere(ref, tmp_path, HF_HUB_OFFLINE="1")
    assert said == f"Checkpoint|{COMMIT}|config.json|model.safetensors"


def test_a_hub_id_is_never_probed_as_a_path(tmp_path):
    (tmp_path / "org/name").mkdir(parents=True)
    said = open_elsewhere("org/name", tmp_path, HF_HUB_OFFLINE="1")
    assert "offline mode is on and it is not in the cache" in said and "hf download org/name" in said


def test_offline_with_a_shard_missing(tmp_path):
    index = json.dumps({"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}).encode()
    cache(tmp_path, {"model.safetensors.index.json": index, "s1.safetensors": weights(tmp_path, "a")})
    said = open_elsewhere("org/name", tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("refused:") and "missing file(s): s2.safetensors" in said


def test_no_network(tmp_path):
    said = open_elsewhere("org/name", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("refused:") and "cannot be reached" in said and "HF_ENDPOINT" in said
    cache(tmp_path, {"model.safetensors": weights(tmp_path, "a")})
    assert open_elsewhere("org/name", tmp_path, HF_ENDPOINT="http://127.0.0.1:9").startswith(f"Checkpoint|{COMMIT}")


class Hub(http.server.BaseHTTPRequestHandler):
    """The few endpoints of the Hub that a download asks for."""

    def __init__(self, files, fetched, *arguments):
        self.files, self.fetched = files, fetched
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/gated"):
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access to this model is restricted")
        if not path.startswith(("/api/models/org/name", "/org/name/resolve/")):
            return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if path.startswith("/api/models/org/name/tree/"):
            listing = [
                {"type": "file", "path": n, "size": len(raw), "oid": f"{i:040}"}
                for i, (n, raw) in enumerate(self.files.items())
            ]
            return self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")
        if path.startswith("/api/models/"):
            if "/revision/" in path and path.rpartition("/")[2] not in (COMMIT, "main", "v1"):
                return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            info = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in self.files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        if self.command == "GET":
            self.fetched.append(name)
        etag = f'"{list(self.files).index(name):040}"'
        return self.answer(200, self.files[name], ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture
def serve():
    """A function that starts a Hub holding org/name; it returns the address and the list of files fetched."""
    servers = []

    def start(files):
        fetched = []
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, files, fetched))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", fetched

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_only_the_files_needed_are_fetched(tmp_path, serve):
    index = json.dumps({"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}).encode()
    needed = {
        "config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": index,
        "s1.safetensors": weights(tmp_path, "a"), "s2.safetensors": weights(tmp_path, "b"),
    }  # fmt: skip
    rest = {"pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "old.safetensors": b"x", "README.md": b"x"}
    endpoint, fetched = serve(needed | rest)
    said = open_elsewhere("org/name@v1", tmp_path, HF_ENDPOINT=endpoint)
    assert said == "|".join(["Checkpoint", COMMIT, *sorted(needed)])
    assert sorted(fetched) == sorted(needed)
    assert open_elsewhere("org/name@v1", tmp_path, HF_HUB_OFFLINE="1") == said


def test_errors_of_the_hub(tmp_path, serve):
    endpoint, _ = serve({"pytorch_model.bin": b"x"})
    for ref, message in {
        "org/name": "only pickles",
        "org/name@nowhere": "no revision 'nowhere'",
        "org/none": "not found on the Hub",
        "org/gated": "gated on the Hub",
    }.items():
        said = open_elsewhere(ref, tmp_path, HF_ENDPOINT=endpoint)
        assert said.startswith("refused:") and message in said and "next:" in said


def test_adapter_from_the_hub(tmp_path, serve):
    save_file(
        {"base_model.model.q.lora_A.weight": torch.ones(2, 3), "base_model.model.q.lora_B.weight": torch.ones(4, 2)},
        tmp_path / "a",
    )
    files = {
        "adapter_config.json": b'{"peft_type": "LORA", "r": 2}',
        "adapter_model.safetensors": (tmp_path / "a").read_bytes(),
    }
    endpoint, fetched = serve(files | {"README.md": b"x", "optimizer.pt": b"x", "tokenizer.json": b"{}"})
    said = open_elsewhere("org/name", tmp_path, HF_ENDPOINT=endpoint)
    assert said == "|".join(["Adapter", COMMIT, *sorted(files)])
    assert sorted(fetched) == sorted(files)


def test_pickled_adapter_on_the_hub_is_not_fetched(tmp_path, serve):
    endpoint, fetched = serve({"adapter_config.json": b"{}", "adapter_model.bin": b"x"})
    said = open_elsewhere("org/name", tmp_path, HF_ENDPOINT=endpoint)
    assert "adapter_model.bin is a pickle" in said and "hf download org/name" in said and not fetched


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/x.safetensors"])
def test_index_on_the_hub_that_climbs_out(tmp_path, serve, shard):
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    endpoint, fetched = serve({"model.safetensors.index.json": index, "s1.safetensors": b"x"})
    said = open_elsewhere("org/name", tmp_path, HF_ENDPOINT=endpoint)
    assert said.startswith("refused:") and fetched == ["model.safetensors.index.json"]
