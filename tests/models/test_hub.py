"""The way to the hub: against a small server of our own, and against none at all."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from tests.models.cases import some_clips
from tests.models.test_text import save_t5
from videoscaling.models.hub import VAES, located
from videoscaling.models.text import load_text_encoder
from videoscaling.models.vae import load_vae
from videoscaling.utils.errors import UserError

COMMIT = "0" * 40
VAE = (("vae",), ("",))


def etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """A hub's local copy without anything in it, and a client that may use the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)

    def use(endpoint: str) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


@contextlib.contextmanager
def hub(files: dict[str, bytes]):
    """A server that speaks as much of the hub's language as its client needs for the repository us/thing."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def respond(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            asked.append((self.command, self.path))
            path = self.path.split("?")[0]
            if path.startswith("/us/thing/resolve/"):
                body = files.get(path.split("/", 5)[5])
                if body is None:
                    self.respond(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                else:
                    self.respond(200, body, ETag=f'"{etag(body)}"', X_Repo_Commit=COMMIT)
            elif path.startswith("/api/models/us/thing"):
                siblings = [{"rfilename": name} for name in files]
                tree = [{"type": "file", "path": n, "size": len(b), "oid": etag(b)} for n, b in files.items()]
                info = {"id": "us/thing", "sha": COMMIT, "siblings": siblings}
                self.respond(200, json.dumps(tree if "/tree/" in path else info).encode())
            else:
                self.respond(404, b"", X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """The pauses that the hub's client asks for between its attempts, which take no time here."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_a_pipelines_vae_is_fetched_alone_and_kept(empty_hub, slept):
    files = {f"vae/{path.name}": path.read_bytes() for path in VAES["embedded"].iterdir()}
    files |= {"vae/diffusion_pytorch_model.fp16.safetensors": b"no", "transformer/model.safetensors": b"large"}
    files |= {"vae/old.bin": b"a pickle", "model_index.json": b"{}"}
    with hub(files) as (endpoint, asked):
        empty_hub(endpoint)
        vae = load_vae("us/thing")
        fetched = {path.split("/", 5)[5] for method, path in asked if method == "GET" and "/resolve/" in path}
        assert fetched == {f"vae/{n}" for n in ("config.json", "record.json", "diffusion_pytorch_model.safetensors")}
    embedded = load_vae("embedded")
    assert vae.fingerprint == embedded.fingerprint
    assert torch.equal(vae.encode(some_clips()), embedded.encode(some_clips()))
    # The server is gone: what it gave is here.
    assert load_vae("us/thing").fingerprint == embedded.fingerprint
    assert sum(slept) < 10


def test_a_text_encoder_at_the_root_is_fetched_without_the_folders_beside_it(empty_hub, tmp_path):
    folder = save_t5(tmp_path / "t5")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"onnx/config.json": b"{}", "onnx/model.safetensors": b"large", "pytorch_model.bin": b"a pickle"}
    with hub(files) as (endpoint, asked):
        empty_hub(endpoint)
        encoder = load_text_encoder("us/thing")
        fetched = {path.split("/", 5)[5] for method, path in asked if method == "GET" and "/resolve/" in path}
    assert fetched == {path.name for path in folder.iterdir()}
    assert encoder.fingerprint == load_text_encoder(str(folder)).fingerprint


def test_what_is_not_on_the_hub(empty_hub):
    with hub({"README.md": b""}) as (endpoint, _):
        empty_hub(endpoint)
        with pytest.raises(UserError, match="could not be fetched from the hub .there is no config.json in it"):
            load_vae("us/thing")
        with pytest.raises(UserError, match="there is no such repository, or it is private"):
            load_text_encoder("us/other")


def refused() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_no_network_is_said_within_seconds(empty_hub, slept):
    empty_hub(refused())
    for load, what in ((load_vae, "VAE"), (load_text_encoder, "text encoder")):
        with pytest.raises(UserError) as error:
            load("us/thing")
        assert str(error.value).startswith(f"{what} 'us/thing' is no local folder, and could not be fetched")
        assert "hf download us/thing --local-dir DIR" in str(error.value)
        assert "\n" not in str(error.value)
    assert sum(slept) < 10


def test_a_hub_that_never_answers_is_given_up(empty_hub, slept, monkeypatch):
    monkeypatch.setattr("videoscaling.models.hub.PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        empty_hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match="no answer: .*tim"):
            located("us/thing", "VAE", VAE, VAES)
        # Each attempt waits for an answer for models.hub.PATIENCE.
        silent.setblocking(False)
        attempts = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                attempts += 1
        assert attempts == 1
        assert sum(slept) < 5


def test_folders(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"no config.json in {tmp_path / 'vae'} nor {tmp_path}"):
        located(str(tmp_path), "VAE", VAE, VAES)
    (tmp_path / "config.json").touch()
    assert located(str(tmp_path), "VAE", VAE, VAES) == (tmp_path, ("",))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    assert located(str(tmp_path), "VAE", VAE, VAES) == (tmp_path, ("vae",))
    monkeypatch.chdir(tmp_path)
    for absent in ("a/b/c", "./a", "nothing", str(tmp_path / "a"), str(tmp_path / "config.json")):
        with pytest.raises(UserError, match="no such folder, and no hub id"):
            located(absent, "VAE", VAE, VAES)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 10**30}, f"num_layers is {10**30}"),
        ({"layers_per_block": [2, 5000]}, "layers_per_block is 5000"),
        ({"nested": {"d_ff": 2_000_000}}, "d_ff is 2000000"),
    ],
    ids=["layers", "list", "nested"],
)
@pytest.mark.parametrize("load", [load_text_encoder, load_vae])
def test_sizes_that_no_encoder_has_are_refused_before_anything_is_built(tmp_path, load, sizes, message):
    config = json.loads((VAES["embedded"] / "config.json").read_text()) if load is load_vae else {"model_type": "t5"}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    with pytest.raises(UserError, match=f"config.json: {message}, which no published encoder has"):
        load(str(tmp_path))
