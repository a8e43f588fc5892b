"""A Hugging Face Hub on this machine: the part of its interface that an upload needs, over HTTP.

All files are stored in the commit. Large files go to another service of the Hub (Xet), whose protocol is not here.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What the server has and how it answers.

    Attributes:
        files: of each branch, by name.
        refusals: status of the answer, by the beginning of the path.
        asked: method and path of each request.
        is_private: whether the repository is private; None if there is none.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {"main": {}}
        self.refusals: dict[str, int] = {}
        self.asked: list[tuple[str, str]] = []
        self.is_private: bool | None = None
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and content of an answer."""
        self.asked.append((method, path))
        for start, status in self.refusals.items():
            if path.startswith(start):
                return status, {"error": "refused"}
        if path == "/api/repos/create":
            is_new = self.is_private is None
            asked = json.loads(body)
            if is_new:
                self.is_private = bool(asked.get("private")) or asked.get("visibility") == "private"
            return (200 if is_new else 409), {"url": f"{self.endpoint}/me/small", "error": "exists"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        what, _, branch = path.removeprefix("/api/models/me/small").strip("/").partition("/")
        branch = branch.partition("?")[0]
        if what == "branch":
            self.files.setdefault(branch, {})
            return 200, {}
        if what == "preupload":
            files = [{"path": one["path"], "shouldIgnore": False} for one in json.loads(body)["files"]]
            return 200, {"files": [{**one, "uploadMode": "regular"} for one in files]}
        if what == "commit":
            self._commit(branch, body)
            return 200, {"commitUrl": f"{self.endpoint}/me/small/commit/1", "commitOid": "1" * 40, "success": True}
        if what == "tree":
            return 200, [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files[branch].items()
            ]
        if self.is_private is None:
            return 404, {"error": "Repository not found"}
        return 200, {"id": "me/small", "modelId": "me/small", "private": bool(self.is_private), "siblings": []}

    def _commit(self, branch: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[branch][value["path"]] = base64.b64decode(value["content"])


@contextmanager
def hub_on_this_machine() -> Iterator[Hub]:
    """A context in which the server runs; its address is `endpoint`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = hub.answer(self.command, self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _any

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
