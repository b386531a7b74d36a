"Published models by name, from a hub of this machine that answers, breaks off, refuses and lies."

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from ltx_nb.loading import download as chapter
from ltx_nb.loading.download import FOLDER, PUBLISHED, DownloadError, check_room, download, downloaded
from ltx_nb.model.text import find_gemma
from ltx_nb.tiny.checkpoint import tiny_checkpoint
from ltx_nb.tools.cli import main
from ltx_nb.tools.options import find_models

PIECE = 10_485_760  # bytes that huggingface_hub writes at once: a file that broke off goes on at a multiple of it
NAME = PUBLISHED["ltx-2.3"].files[0]


class Hub:
    "Files of a repository, how often it was asked for which, and what is wrong with it."

    def __init__(self, files: dict[str, bytes], status: int = 200, code: str = "", breaks: int = 0, listed=None):
        self.files, self.status, self.code, self.breaks, self.asked = files, status, code, breaks, []
        self.listed = listed or {name: len(content) for name, content in files.items()}
        self.tokens: set[str | None] = set()

    def handler(hub):
        class Handler(BaseHTTPRequestHandler):
            def answer(self, status, content=b"", **headers):
                self.send_response(status)
                for name, value in {"Content-Length": len(content), **headers}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def refused(self):
                hub.tokens.add(self.headers.get("Authorization"))
                if hub.status != 200:
                    self.answer(hub.status, **({"X_Error_Code": hub.code} if hub.code else {}))
                return hub.status != 200

            def do_HEAD(self):
                if not self.refused():
                    content = hub.files[self.path.rpartition("/")[2]]
                    self.answer(200, content, ETag=f'"{len(content)}"', X_Repo_Commit="c" * 40)

            def do_GET(self):
                if self.refused():
                    return
                if self.path.startswith("/api/"):
                    files = [{"rfilename": name, "size": size} for name, size in hub.listed.items()]
                    return self.answer(200, json.dumps({"id": "a/b", "sha": "c" * 40, "siblings": files}).encode())
                name = self.path.rpartition("/")[2]
                first = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
                content = hub.files[name][first:]
                hub.asked.append((name, first))
                if hub.breaks:
                    hub.breaks -= 1
                    self.send_response(206 if first else 200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: 3 * PIECE // 2])
                    self.close_connection = True
                else:
                    self.answer(206 if first else 200, content)

            def log_message(self, *_):
                pass

        return Handler


@contextmanager
def running(hub: Hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    "Tests run offline; here the hub is this machine, and nobody is logged in."
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv(FOLDER, str(tmp_path / "models"))


def fetch(name, hub, **options):
    with running(hub) as endpoint:
        return download(name, endpoint=endpoint, **{"patience": (0.01, 0.01), **options})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "one.safetensors"
    save_file({"weight": torch.arange(float(PIECE // 2))}, path, {"config": "{}"})  # two pieces
    return path.read_bytes()


def gemma_files():
    return {path.name: path.read_bytes() for path in Path(tiny_checkpoint().text_encoder).iterdir() if path.is_file()}


def test_a_checkpoint_is_the_file_that_trains(weights):
    hub = Hub({NAME: weights, "ltx-2.3-22b-distilled.safetensors": b"other", "README.md": b"# LTX"})
    path = fetch("ltx-2.3", hub)
    assert path.name == NAME and path.read_bytes() == weights
    assert [name for name, _ in hub.asked] == [NAME]
    assert download("ltx-2.3") == path, "the second time nobody is asked"


def test_a_text_encoder_is_a_folder_that_loads():
    hub = Hub(gemma_files() | {"model.gguf": b"x", ".gitattributes": b"x"})
    path = fetch("gemma-3", hub)
    assert find_gemma(path).weights == path and {name for name, _ in hub.asked} == set(gemma_files())


def test_what_broke_off_is_gone_on_with(weights):
    hub = Hub({NAME: weights}, breaks=1)
    assert fetch("ltx-2.3", hub).read_bytes() == weights
    assert hub.asked == [(NAME, 0), (NAME, PIECE)]


def test_a_file_that_is_cut_short_is_not_taken_for_whole(weights):
    path = fetch("ltx-2.3", Hub({NAME: weights}))
    path.write_bytes(weights[:-4])
    assert downloaded("ltx-2.3") is None
    assert fetch("ltx-2.3", Hub({NAME: weights})).read_bytes() == weights


def test_a_shard_that_is_missing_is_fetched():
    path = fetch("gemma-3", Hub(gemma_files()))
    (path / "model.safetensors").unlink()
    hub = Hub(gemma_files())
    assert fetch("gemma-3", hub) == path and [name for name, _ in hub.asked] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "status", "code", "token", "words"),
    [
        ("gemma-3", 401, "GatedRepo", None, ["accept the Gemma Terms of Use", "HF_TOKEN", "google/gemma-3"]),
        ("gemma-3", 403, "GatedRepo", "mine", ["not given out for your token", "account"]),
        ("gemma-3", 401, "RepoNotFound", None, ["accept the Gemma Terms of Use"]),  # so it says without a token
        ("ltx-2.3", 404, "RepoNotFound", None, ["no Lightricks/LTX-2.3"]),
        ("ltx-2.3", 503, "", None, ["could not be fetched", "goes on from there"]),
    ],
)
def test_a_refusal_says_what_to_do(name, status, code, token, words):
    hub = Hub({}, status, code)
    with pytest.raises(DownloadError) as error:
        fetch(name, hub, token=token)
    assert all(word in str(error.value) for word in words), error.value
    assert hub.tokens == {f"Bearer {token}" if token else None}


def test_a_hub_that_is_not_there_is_asked_again_and_then_named(tmp_path):
    with running(Hub({})) as endpoint:
        pass  # and closed
    with pytest.raises(DownloadError, match="could not be fetched from Lightricks/LTX-2.3"):
        download("ltx-2.3", endpoint=endpoint, patience=(0.01,))


def test_offline_is_said(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        download("ltx-2.3", patience=())


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/outside.safetensors", "a\\..\\b.safetensors"])
def test_a_name_that_leaves_its_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="leave its folder"):
        fetch("gemma-3", Hub({}, listed={name: 1}))
    assert not list(tmp_path.rglob("outside*"))


def test_a_repository_without_the_file_says_what_it_has():
    with pytest.raises(ValueError, match="no ltx-2.3-22b-dev.safetensors; it has other.safetensors"):
        fetch("ltx-2.3", Hub({"other.safetensors": b"x"}))


def test_a_small_disk_is_said_before_anything_is_fetched(monkeypatch):
    hub = Hub({NAME: b""}, listed={NAME: 10**18})
    with pytest.raises(OSError, match="1000000000.0 GB more"):
        fetch("ltx-2.3", hub)
    assert not hub.asked
    check_room("no/such/folder", 1, "a byte")


def test_what_came_and_is_no_checkpoint_is_not_handed_out():
    with pytest.raises(DownloadError, match="not a whole ltx-2.3"):
        fetch("ltx-2.3", Hub({NAME: b"<html>log in</html>"}))


# on the command line


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


def test_the_command_fetches_and_the_name_finds_it(capsys, monkeypatch, weights):
    fetch("ltx-2.3", Hub({NAME: weights}))
    fetch("gemma-3", Hub(gemma_files()))
    code, out, _ = call(capsys, "download", "ltx-2.3", "gemma-3")
    assert code == 0 and NAME in out and "gemma-3: " in out
    checkpoint, text_encoder = find_models("ltx-2.3", None)
    assert Path(checkpoint).name == NAME and Path(text_encoder).name == "gemma-3"
    assert find_models("ltx-2.3", "mine")[1] == "mine"


def test_a_name_whose_files_are_not_there_says_what_to_run(capsys):
    code, out, err = call(capsys, "generate", "a rabbit", "--model", "ltx-2.3", "--progress", "none")
    assert code == 1 and not out and "ltx-nb download ltx-2.3 gemma-3" in err and err.count("\n") == 1


def test_a_wrong_name_is_said_before_the_first_is_fetched(capsys, monkeypatch):
    monkeypatch.setattr(chapter, "downloaded", lambda *_: pytest.fail("looked for a file first"))
    code, _, err = call(capsys, "download", "gemma-3", "ltx-3")
    assert code == 1 and "'ltx-3' is not the name" in err and "ltx-2.3 (Lightricks/LTX-2.3)" in err
