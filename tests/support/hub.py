"""A model hub on this machine: enough of its protocol for downloads, from folders."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repos: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders under their ids; yields the address and the list of files fetched so far."""
    fetched: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in repos:
                return self._describe("/".join(parts[2:4]), tree="tree" in parts[4:])
            if len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[:2]) in repos:
                file = repos["/".join(parts[:2])].joinpath(*parts[4:])
                if file.is_file():
                    if body:
                        fetched.append("/".join(parts[4:]))
                    return self._send(file.read_bytes(), body=body)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()

        def _describe(self, repo: str, *, tree: bool) -> None:
            files = sorted(path for path in repos[repo].rglob("*") if path.is_file())
            names = [path.relative_to(repos[repo]).as_posix() for path in files]
            if tree:
                sizes = [path.stat().st_size for path in files]
                rows = zip(names, sizes, strict=True)
                content = [
                    {"type": "file", "path": name, "size": size, "oid": name} for name, size in rows
                ]
            else:
                siblings = [{"rfilename": name} for name in names]
                content = {"id": repo, "modelId": repo, "sha": _SHA, "siblings": siblings}
            self._send(json.dumps(content).encode(), body=True)

        def _send(self, content: bytes, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", _SHA)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
