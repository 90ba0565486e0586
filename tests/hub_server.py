"""A double of the Hugging Face Hub, in memory: as much of its HTTP API as pushes of models, and loads of models and of data
sets that list their files in the card, need.

It is no Hub: it stores what it is sent and answers in the Hub's form, so that the real client can be tested against it, and
it fails on request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

RUNNING: list[HubDouble] = []
"""The one that the tests of this process talk to."""

# A data set's repository is known as datasets/user/name here, a model's as user/name.
_REPO = r"(?P<repo>(?:datasets/)?[\w.-]+(?:/[\w.-]+)?)"
_API = rf"/api/(?:models/|(?=datasets/)){_REPO}"
# Every request that the double knows, and the word by which tests speak of it.
ROUTES = [
    (kind, method, re.compile(f"^{path}$"))
    for kind, method, path in (
        ("create", "POST", r"/api/repos/create"),
        ("validate", "POST", r"/api/validate-yaml"),
        ("auth", "GET", rf"{_API}/auth-check/write"),
        ("branch", "POST", rf"{_API}/branch/(?P<revision>.+)"),
        ("preupload", "POST", rf"{_API}/preupload/(?P<revision>.+)"),
        ("commit", "POST", rf"{_API}/commit/(?P<revision>.+)"),
        ("tree", "GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?"),
        ("info", "GET", rf"{_API}(?:/revision/(?P<revision>.+))?"),
        ("batch", "POST", rf"/{_REPO}\.git/info/lfs/objects/batch"),
        ("upload", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
        ("resolve", "HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
        ("resolve", "GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    )
]
OF_A_PUSH = ("create", "auth", "tree", "validate", "preupload", "batch", "upload", "commit")


@dataclass
class Commit:
    """What a revision holds after it."""

    oid: str
    message: str
    files: dict[str, bytes]
    changed: tuple[str, ...] = ()


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def head(self, revision: str) -> Commit | None:
        known = [commit for commits in self.branches.values() for commit in commits]
        by_oid = next((commit for commit in known if commit.oid == revision), None)
        return by_oid or (self.branches[revision][-1] if revision in self.branches else None)


class HubDouble:
    """The server; ``with HubDouble() as hub: hub.url``.

    Attributes:
        writers: Tokens that may write, each with its user.
        readers: Tokens that may read public repositories.
        repos: By id.
        requests: The kinds of the requests so far.
        log: Kind, repository and token of each.
        faults: What happens to requests of a kind from now on: a status, or "cut" for a connection that breaks.
        seen: All that was ever sent, for whoever looks for secrets in it; headers are left out.
    """

    def __init__(self) -> None:
        self.writers: dict[str, str] = {}
        self.readers: dict[str, str] = {}
        self.repos: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.log: list[tuple[str, str, str]] = []
        self.faults: dict[str, int | str] = {}
        self.seen = bytearray()
        double = self

        class Handler(_Handler):
            hub = double

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """Put a repository there."""
        made = self.repos.setdefault(repo, Repository(private))
        made.branches["main"] = [self.commit({}, files, "initial")]
        return made

    def forget(self) -> None:
        """As it was made: no tokens, no repositories, no faults."""
        for kept in (
            self.writers,
            self.readers,
            self.repos,
            self.objects,
            self.requests,
            self.log,
            self.faults,
            self.seen,
        ):
            kept.clear()

    def commit(self, before: dict[str, bytes], changes: dict[str, bytes | None], message: str) -> Commit:
        files = {name: content for name, content in {**before, **changes}.items() if content is not None}
        oid = hashlib.sha1(f"{len(self.requests)} {message} {sorted(files)}".encode()).hexdigest()
        return Commit(oid, message, files, tuple(changes))

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        return self.repos[repo].head(revision).files


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: two would wait for each other on the loopback

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        known = (
            (kind, pattern.match(url.path)) for kind, method, pattern in ROUTES if method == self.command
        )
        kind, found = next(((kind, found) for kind, found in known if found), ("", None))
        if found is None:
            self._body()
            return self._refuse(404, "unknown to the double")
        self.hub.requests.append(kind)
        fault = self.hub.faults.get(kind)
        if fault == "cut":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        body = self._body()
        if fault is not None:
            return self._refuse(int(fault), "as the test asked for")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = self.hub.writers.get(token)
        about = (
            f"{self.user}/{json.loads(body)['name']}" if kind == "create" else found.groupdict().get("repo")
        )
        self.hub.log.append((kind, about or "", token))
        if token and token not in self.hub.writers and token not in self.hub.readers:
            return self._refuse(401, "Invalid credentials in Authorization header")
        groups = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
        if "repo" in groups and kind != "create":
            self.repo = self.hub.repos.get(groups["repo"])
            if self.repo is None or (self.repo.private and not self.user):
                return self._refuse(404 if token else 401, "Repository not found", "RepoNotFound")
        return getattr(self, f"_{kind}")(body, **groups)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.seen += body
        return body

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(data))))
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        named = {"X_Error_Code": code} if code else {}
        self._answer({"error": message}, status, X_Error_Message=message, **named)

    def _may_write(self) -> bool:
        if not self.user:
            self._refuse(403, "you have no right to write here")
        return bool(self.user)

    # ---- One method for each kind of request ----

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        if not self.user or asked.get("organization") not in (None, self.user):
            return self._refuse(403, "you have no right to create a model there")
        repo = f"{self.user}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo}", "name": repo}
        if repo in self.hub.repos:
            return self._answer({**url, "error": "You already created this model repo"}, 409)
        self.hub.add(repo, {".gitattributes": b""}, private=asked.get("visibility") == "private")
        return self._answer(url)

    def _auth(self, body: bytes, repo: str) -> None:
        if self._may_write():
            self._answer({})

    def _validate(self, body: bytes) -> None:
        front = re.match(r"^---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        data = yaml.safe_load(front[1]) if front else {}
        wrong = [key for key in ("license", "pipeline_tag") if not isinstance(data.get(key, ""), str)]
        wrong += [] if all(isinstance(tag, str) for tag in data.get("tags", [])) else ["tags"]
        errors = [{"message": f'"{key}" must be a string'} for key in wrong]
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, body: bytes, repo: str, revision: str) -> None:
        if self._may_write():
            if revision in self.repo.branches:
                return self._refuse(409, "it exists")
            self.repo.branches[revision] = list(self.repo.branches["main"])
            self._answer({})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        head = self.repo.head(revision)
        if head is None:
            return self._refuse(404, "no such revision", "RevisionNotFound")
        files = []
        for asked in json.loads(body)["files"]:
            large = asked["path"].endswith((".safetensors", ".pt", ".bin"))
            there = head.files.get(asked["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _git_oid(there)
            mode = "lfs" if large else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._answer({"files": files})

    def _batch(self, body: bytes, repo: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            there = asked["oid"] in self.hub.objects
            objects.append({**asked, **({} if there else {"actions": upload})})
        self._answer({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, "other content than announced")
        self.hub.objects[oid] = body
        return self._answer({})

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        pull_request = self.query.get("create_pr") == ["1"]
        if not pull_request and not self._may_write():
            return None
        head = self.repo.head(revision)
        changes: dict[str, bytes | None] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
                self.hub.seen += changes[value["path"]]
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = self.hub.objects[value["oid"]]
            else:
                changes[value["path"]] = None
        commit = self.hub.commit(head.files, changes, message)
        answer = {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit.oid}", "commitOid": commit.oid}
        if pull_request:
            number = 1 + sum(name.startswith("refs/pr/") for name in self.repo.branches)
            self.repo.branches[f"refs/pr/{number}"] = [*self.repo.branches[revision], commit]
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
        else:
            self.repo.branches[revision].append(commit)
        return self._answer(answer)

    def _tree(self, body: bytes, repo: str, revision: str, folder: str = "") -> None:
        head = self.repo.head(revision)
        if head is None:
            return self._refuse(404, "no such revision", "RevisionNotFound")
        inside = f"{folder}/" if folder else ""
        within = {name: content for name, content in head.files.items() if name.startswith(inside)}
        if folder and not within:
            return self._refuse(404, "no such folder", "EntryNotFound")
        deeper: dict[str, None] = {}
        if self.query.get("recursive") == ["false"]:
            deep = [name for name in within if "/" in name.removeprefix(inside)]
            deeper = dict.fromkeys(inside + name.removeprefix(inside).split("/")[0] for name in deep)
            within = {name: content for name, content in within.items() if name not in deep}
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}
            for name, content in within.items()
        ]
        folders = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in deeper]
        return self._answer([*folders, *files])

    def _info(self, body: bytes, repo: str, revision: str = "main") -> None:
        head = self.repo.head(revision)
        if head is None:
            return self._refuse(404, "no such revision", "RevisionNotFound")
        front = re.match(r"^---\n(.*?)\n---\n", head.files.get("README.md", b"").decode(), re.DOTALL)
        info = {
            "id": repo,
            "sha": head.oid,
            "private": self.repo.private,
            "tags": [],
            "downloads": 0,
            "siblings": [{"rfilename": name} for name in head.files],
            **({"cardData": yaml.safe_load(front[1])} if front else {}),
        }
        return self._answer(info)

    def _resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        head = self.repo.head(revision)
        if head is None or path not in head.files:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        content = head.files[path]
        return self._answer(content, ETag=f'"{_git_oid(content)}"', X_Repo_Commit=head.oid)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
