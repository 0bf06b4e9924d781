"""A small HTTP server that speaks what inference servers speak, records what it is asked, and fails as they do."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer:
    """Serves `folder` under the name `base`, signed by `kind`: vllm, sglang, llamacpp. It answers by `weights`.

    `fails` maps a path to what happens there: a status (the weights stay), ``"dies"`` (500, unhealthy from then on),
    ``"gone"`` (the connection breaks, and nothing answers any more), ``"mixes"`` (500, and other weights),
    ``"says no"`` (200 with success: false). `lacks` are paths that are not there.
    """

    def __init__(self, kind, folder, *, fails=None, lacks=(), key="", loras=()):
        self.kind, self.folder, self.fails, self.lacks, self.key = kind, str(folder), fails or {}, lacks, key
        self.asked, self.weights, self.alive, self.gone = [], "old", True, False
        self.adapters = {}
        self.loras = [{"id": number, "path": path, "scale": 1.0} for number, path in enumerate(loras)]
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def switched(self):
        """(path, body) of every POST that is no question."""
        return [(path, body) for method, path, body in self.asked if method == "POST" and path != "/v1/completions"]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def get(self, path):
        cards = [{"id": "base", "object": "model", "owned_by": self.kind, "root": self.folder, "parent": None}]
        cards += [{"id": n, "owned_by": self.kind, "root": p, "parent": "base"} for n, p in self.adapters.items()]
        if self.kind == "sglang":
            cards[0]["root"] = "base"
        return {
            "/health": (200 if self.alive else 503, {}),
            "/v1/models": (200, {"object": "list", "data": cards}),
            "/get_model_info": (200, {"model_path": self.folder}),
            "/lora-adapters": (200, self.loras),
        }.get(path, (404, {"detail": "Not Found"}))

    def post(self, path, body):
        if path == "/v1/completions":
            if not self.alive:
                return 500, {"error": "EngineDeadError"}
            shift = {"old": 0.0, "new": 1.0, "mixed": 2.0}[self.weights]
            scale = sum(entry["scale"] for entry in self.loras)
            logprobs = {"token_logprobs": [-0.5 - shift - scale, -0.25]}
            return 200, {"choices": [{"text": f" {self.weights}", "logprobs": logprobs}]}
        failure = self.fails.get(path)
        if path in self.lacks:
            return 404, {"detail": "Not Found"}
        if isinstance(failure, int):
            return failure, {"error": {"message": "it does not like it"}}
        if failure == "dies":
            self.alive = False
            return 500, {"error": "EngineDeadError"}
        if failure == "mixes":
            self.weights = "mixed"
            return 500, {"error": "broke off"}
        if failure == "says no":
            return 200, {"success": False, "message": "could not find the file"}
        if path in ("/collective_rpc", "/update_weights_from_disk"):
            self.weights = "new"
        if path in ("/v1/load_lora_adapter", "/load_lora_adapter"):
            if body["lora_name"] in self.adapters and not body.get("load_inplace"):
                return 400, {"error": {"message": "already loaded"}}
            self.adapters[body["lora_name"]] = body["lora_path"]
        if path == "/lora-adapters":
            told = {entry["id"]: entry["scale"] for entry in body}
            self.loras = [entry | {"scale": told.get(entry["id"], 0.0)} for entry in self.loras]
        return 200, {"success": True}

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer("GET", None)

            def do_POST(self):
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer("POST", json.loads(data) if data else None)

            def answer(self, method, body):
                server.asked.append((method, self.path, body))
                if server.gone or server.fails.get(self.path) == "gone":
                    server.gone = True
                    self.close_connection = True
                    return
                if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                    status, told = 401, {"error": "Unauthorized"}
                else:
                    status, told = server.get(self.path) if method == "GET" else server.post(self.path, body)
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler
