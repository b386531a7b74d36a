"A hub of one's own: the few answers that huggingface_hub needs to make a repository and to commit files to it."

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = 10_000  # bytes from which on a file goes another way than inside the commit


@dataclass
class StandIn:
    "What has arrived, and how it behaves."

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)  # by repository
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by their hash
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository -> name -> content, as committed
    uploads: int = 0  # how many large files were sent
    tokens: set[str] = field(default_factory=set)
    refuse: int | None = None  # an HTTP status for every repository that is to be made
    break_after: int | None = None  # large files until the line goes down

    def commit(self, repository: str, lines: list[dict]) -> None:
        place = self.files.setdefault(repository, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                place[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                place[value["path"]] = self.stored[value["oid"]]


def answer(hub: StandIn, path: str, body: bytes) -> tuple[int, dict]:
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if hub.refuse:
            return hub.refuse, {"error": "no"}
        known = name in hub.private
        hub.private.setdefault(name, bool(asked.get("private")) or asked.get("visibility") == "private")
        return (409 if known else 200), {"url": f"{hub.address}/{name}"}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if "/preupload/" in path:
        files = json.loads(body)["files"]
        kind = lambda file: "lfs" if file["size"] > LARGE else "regular"
        return 200, {"files": [{"path": f["path"], "uploadMode": kind(f), "shouldIgnore": False} for f in files]}
    if path.endswith("/info/lfs/objects/batch"):
        objects = json.loads(body)["objects"]
        send = lambda oid: {} if oid in hub.stored else {"actions": {"upload": {"href": f"{hub.address}/store/{oid}"}}}
        return 200, {"transfer": "basic", "objects": [{**each, **send(each["oid"])} for each in objects]}
    if "/commit/" in path:
        repository = path.removeprefix("/api/models/").partition("/commit/")[0]
        hub.commit(repository, [json.loads(line) for line in body.splitlines() if line.strip()])
        return 200, {"commitUrl": f"{hub.address}/{repository}/commit/1", "commitOid": "1", "success": True}
    return 404, {"error": f"nothing at {path}"}


@contextmanager
def hub_standin():
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.reply(*answer(hub, self.path.partition("?")[0], self.body()))

        def do_PUT(self):
            content = self.body()
            if hub.break_after is not None and hub.uploads >= hub.break_after:
                return self.reply(403, {"error": "the line is down"})
            hub.uploads += 1
            hub.stored[self.path.rpartition("/")[2]] = content
            self.reply(200, {})

        def body(self) -> bytes:
            hub.tokens.add(self.headers.get("authorization", "").removeprefix("Bearer "))
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("content-length") or 0))

        def reply(self, status: int, value: dict):
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
