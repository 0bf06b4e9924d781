"""A Hub of its own on loopback: the endpoints that publishing uses, with what it received counted."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs


class Hub:
    """Repositories as path → bytes, large files by sha256; `fails` are statuses for the next requests that match."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, dict] = {}
        self.commits: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.received = 0
        self.puts: list[int] = []
        self.copied: list[str] = []
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.fails: list[tuple[str, int, str]] = []
        self.url = ""

    def add(self, repo, commit, files, card):
        self.repos[repo], self.commits[repo], self.cards[repo] = dict(files), commit, card

    def info(self, repo):
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        names = [{"rfilename": name} for name in sorted(self.repos[repo])]
        about = {"id": repo, "modelId": repo, "sha": self.commits[repo], "private": False, "tags": [], "downloads": 0}
        return 200, {**about, "likes": 0, "siblings": names, "cardData": self.cards.get(repo, {})}

    def create(self, body):
        repo = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
        found = repo in self.repos
        self.repos.setdefault(repo, {})
        self.commits.setdefault(repo, "0" * 40)
        return (409 if found else 200), {"url": f"{self.url}/{repo}", "name": repo}

    def preupload(self, repo, body):
        files = []
        for file in body["files"]:
            held = self.repos[repo].get(file["path"])
            large = file["path"].endswith(".safetensors")
            oid = None if held is None else hashlib.sha256(held).hexdigest() if large else blob(held)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def batch(self, body):
        objects = []
        for one in body["objects"]:
            put = {"actions": {"upload": {"href": f"{self.url}/store/{one['oid']}", "header": {}}}}
            objects.append({"oid": one["oid"], "size": one["size"], **({} if one["oid"] in self.stored else put)})
        return 200, {"transfer": "basic", "objects": objects}

    def paths(self, repo, body):
        found = []
        for path in body["paths"]:
            data = self.repos.get(repo, {}).get(path)
            if data is not None:
                one = {"type": "file", "path": path, "size": len(data), "oid": blob(data)}
                if path.endswith(".safetensors"):
                    digest = hashlib.sha256(data).hexdigest()
                    one |= {"lfs": {"oid": digest, "size": len(data), "pointerSize": 130}, "xetHash": digest}
                found.append(one)
        return 200, found

    def duplicate(self, repo, body):
        held = {hashlib.sha256(data).hexdigest(): data for data in self.repos[repo].values()}
        for file in body["files"]:
            self.stored[file["sha256"]] = held[file["sha256"]]
            self.copied.append(file["filename"])
        return 200, {"success": body["files"], "failed": []}

    def commit(self, repo, raw):
        for line in raw.splitlines():
            kind, value = (one := json.loads(line))["key"], one["value"]
            if kind == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                self.repos[repo][value["path"]] = self.stored[value["oid"]]
            elif kind == "deletedFile":
                del self.repos[repo][value["path"]]
        oid = hashlib.sha1(raw).hexdigest()
        self.commits[repo] = oid
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}

    def answer(self, method, path, raw):
        """The status and JSON for a request."""
        for number, (part, status, message) in enumerate(self.fails):
            if part in f"{method} {path}":
                del self.fails[number]
                return status, {"error": message}
        plain = raw[:1] == b"{" and b"\n" not in raw
        body = json.loads(raw) if plain else parse_qs(raw.decode()) if b"paths=" in raw[:6] else None
        routes = [
            (r"POST /api/repos/create", lambda: self.create(body)),
            (r"POST /api/validate-yaml", lambda: (200, {"errors": [], "warnings": []})),
            (r"POST /api/models/([^/]+/[^/]+)/preupload/.*", lambda repo: self.preupload(repo, body)),
            (r"POST /api/models/([^/]+/[^/]+)/paths-info/.*", lambda repo: self.paths(repo, body)),
            (r"POST /api/models/([^/]+/[^/]+)/lfs-files/duplicate", lambda repo: self.duplicate(repo, body)),
            (r"POST /api/models/([^/]+/[^/]+)/commit/.*", lambda repo: self.commit(repo, raw)),
            (r"POST /[^/]+/[^/]+\.git/info/lfs/objects/batch", lambda: self.batch(body)),
            (r"PUT /store/(\w+)", lambda oid: self.put(oid, raw)),
            (r"GET /api/models/([^/]+/[^/]+)(?:/revision/.*)?", lambda repo: self.info(repo)),
        ]
        for pattern, route in routes:
            if found := re.fullmatch(pattern, f"{method} {path.partition('?')[0]}"):
                return route(*found.groups())
        return 404, {"error": f"no such endpoint: {method} {path}"}

    def put(self, oid, raw):
        assert hashlib.sha256(raw).hexdigest() == oid
        self.stored[oid] = raw
        self.puts.append(len(raw))
        return 200, {}


def blob(data):
    """The oid of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving(hub):
    """The hub's endpoint, while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                raise AssertionError("no length was sent")
            hub.requests.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, content = hub.answer(self.command, self.path, raw)
            if status == 200 and (self.command == "PUT" or "/commit/" in self.path):
                hub.received += len(raw)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if "error" in content:
                self.send_header("X-Error-Message", content["error"])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = respond

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
