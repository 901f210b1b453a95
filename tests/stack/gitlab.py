"""A stand-in for GitLab: the REST endpoints Kopsline uses, over real git repositories, and its push webhooks.

Shapes and statuses follow GitLab's documentation (docs.gitlab.com/api: projects, repositories,
repository_files, commits, branches, notes; user/project/integrations/webhook_events). What GitLab has no
endpoint for (making commits, outages, sending hooks) is under `/_control/`, without a token.
"""

import base64
import hashlib
import hmac
import json
import re
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from stack.gitrepo import EMPTY_TREE, ZERO, Commit, GitError, Repository
from stack.processes import LOOPBACK
from stack.requestlog import RequestLog

TOKEN_PREFIX = "whsec_"
HOOK_TIMEOUT_SECONDS = 10
"""How long GitLab.com waits for a webhook's receiver."""
COMMITS_IN_HOOK = 20
"""A push hook carries the newest 20 commits at most."""

_USER = {
    "id": 4,
    "username": "jsmith",
    "name": "John Smith",
    "state": "active",
    "avatar_url": None,
    "web_url": "http://gitlab.example.com/jsmith",
}


class ApiError(Exception):
    """An answer other than success, with GitLab's JSON body."""

    def __init__(self, status: int, message: object):
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Hook:
    """Where and how push webhooks are sent."""

    url: str | None = None
    signing_token: str | None = None
    secret_token: str | None = None


@dataclass
class Project:
    """One project: its repository and what GitLab keeps beside it, in memory."""

    id: int
    path: str
    repository: Repository
    statuses: list[dict] = field(default_factory=list)
    notes: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class GitLab(ThreadingHTTPServer):
    """Serves on a free port in a thread of its own from the moment it is made."""

    daemon_threads = True

    def __init__(self, home: Path, token: str, log: RequestLog):
        super().__init__((LOOPBACK, 0), _Handler)
        self.home = home
        self.token = token
        self.request_log = log
        self.url = f"http://{LOOPBACK}:{self.server_port}"
        self.projects: dict[int, Project] = {}
        self.hook = Hook()
        self.lock = threading.Lock()
        self._outage = {"count": 0, "status": 503}
        self._next_id = 1000
        threading.Thread(target=self.serve_forever, name="gitlab", daemon=True).start()

    def create_project(self, path: str, content: Path | None, replace: dict[str, str]) -> Project:
        """Makes an empty project, or one whose first commit has the files below `content`, with texts replaced."""
        project = Project(15 + len(self.projects), path, Repository(self.home / f"{path}.git"))
        if content:
            files = {}
            for file in sorted(content.rglob("*")):
                if file.is_file():
                    data = file.read_bytes()
                    for old, new in replace.items():
                        data = data.replace(old.encode(), new.encode())
                    files[str(file.relative_to(content))] = data
            project.repository.write_commit(
                project.repository.default_branch, "Initial commit\n", files, ("John Smith", "john@example.com")
            )
        self.projects[project.id] = project
        return project

    def project(self, reference: str) -> Project:
        """A project by number or by full path."""
        for project in self.projects.values():
            if reference in (str(project.id), project.path):
                return project
        raise ApiError(404, "404 Project Not Found")

    def new_id(self) -> int:
        """A number no other object of this server has."""
        with self.lock:
            self._next_id += 1
            return self._next_id

    def set_outage(self, count: int, status: int) -> None:
        """Makes the next `count` API requests fail with `status`."""
        with self.lock:
            self._outage = {"count": count, "status": status}

    def outage(self) -> int | None:
        """The status this request must fail with, if any; each call uses one up."""
        with self.lock:
            if self._outage["count"] <= 0:
                return None
            self._outage["count"] -= 1
            return self._outage["status"]


# --- What GitLab says of its objects ---------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _project_json(server: GitLab, project: Project) -> dict:
    web_url = f"{server.url}/{project.path}"
    return {
        "id": project.id,
        "description": None,
        "name": project.name,
        "name_with_namespace": project.path.replace("/", " / "),
        "path": project.name,
        "path_with_namespace": project.path,
        "default_branch": project.repository.default_branch,
        "ssh_url_to_repo": f"git@gitlab.example.com:{project.path}.git",
        "http_url_to_repo": f"{web_url}.git",
        "web_url": web_url,
        "visibility": "private",
        "archived": False,
        "empty_repo": project.repository.branch(project.repository.default_branch) is None,
    }


def _commit_json(server: GitLab, project: Project, commit: Commit) -> dict:
    return {
        "id": commit.id,
        "short_id": commit.id[:8],
        "created_at": commit.committed_date,
        "parent_ids": commit.parents,
        "title": commit.title,
        "message": commit.message,
        "author_name": commit.author_name,
        "author_email": commit.author_email,
        "authored_date": commit.authored_date,
        "committer_name": commit.committer_name,
        "committer_email": commit.committer_email,
        "committed_date": commit.committed_date,
        "trailers": {},
        "extended_trailers": {},
        "web_url": f"{server.url}/{project.path}/-/commit/{commit.id}",
    }


# --- REST endpoints --------------------------------------------------------------------------------------


@dataclass
class Request:
    """One API request: the project, the parts of its path, query or body parameters."""

    server: GitLab
    project: Project
    parts: list[str]
    parameters: dict[str, list[str]]

    def one(self, name: str, default: str | None = None) -> str | None:
        """A parameter's (last) value."""
        return self.parameters.get(name, [default])[-1]

    def required(self, name: str) -> str:
        """A parameter GitLab insists on."""
        value = self.one(name)
        if value is None:
            raise ApiError(400, {"error": f"{name} is missing"})
        return value

    def commit(self, ref: str, missing: str) -> str:
        """The commit a parameter means, or GitLab's 404."""
        commit = self.project.repository.resolve(ref)
        if commit is None:
            raise ApiError(404, missing)
        return commit


@dataclass
class Response:
    """One API answer; `body` is JSON unless it is bytes."""

    body: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def get_project(request: Request) -> Response:
    """GET /projects/:id"""
    return Response(_project_json(request.server, request.project))


def get_commit(request: Request) -> Response:
    """GET /projects/:id/repository/commits/:sha"""
    commit = request.commit(request.parts[0], "404 Commit Not Found")
    statuses = [s["status"] for s in request.project.statuses if s["sha"] == commit]
    details = _commit_json(request.server, request.project, request.project.repository.commit(commit))
    return Response({**details, "status": statuses[-1] if statuses else None, "project_id": request.project.id})


def list_commits(request: Request) -> Response:
    """GET /projects/:id/repository/commits?ref_name=&path="""
    repository = request.project.repository
    tip = request.commit(request.one("ref_name", repository.default_branch), "404 Commit Not Found")
    commits = repository.commits(tip, limit=int(request.one("per_page", "20")))
    return Response([_commit_json(request.server, request.project, commit) for commit in commits])


def get_branch(request: Request) -> Response:
    """GET /projects/:id/repository/branches/:branch"""
    name = request.parts[0]
    tip = request.project.repository.branch(name)
    if tip is None:
        raise ApiError(404, "404 Branch Not Found")
    default = name == request.project.repository.default_branch
    return Response(
        {
            "name": name,
            "merged": False,
            "protected": default,
            "default": default,
            "developers_can_push": False,
            "developers_can_merge": False,
            "can_push": True,
            "web_url": f"{request.server.url}/{request.project.path}/-/tree/{name}",
            "commit": _commit_json(request.server, request.project, request.project.repository.commit(tip)),
        }
    )


def get_file_raw(request: Request) -> Response:
    """GET /projects/:id/repository/files/:file_path/raw?ref="""
    repository = request.project.repository
    ref = request.one("ref", "HEAD")
    commit = request.commit(repository.default_branch if ref == "HEAD" else ref, "404 Commit Not Found")
    content = repository.file(commit, request.parts[0])
    if content is None:
        raise ApiError(404, "404 File Not Found")
    headers = {
        "X-Gitlab-Commit-Id": commit,
        "X-Gitlab-File-Path": request.parts[0],
        "X-Gitlab-Ref": ref,
        "X-Gitlab-Size": str(len(content)),
        "X-Gitlab-Content-Sha256": hashlib.sha256(content).hexdigest(),
    }
    return Response(content, headers=headers)


def list_tree(request: Request) -> Response:
    """GET /projects/:id/repository/tree?path=&ref=&recursive=&per_page=&pagination=keyset&page_token="""
    repository = request.project.repository
    commit = request.commit(request.one("ref", repository.default_branch), "404 Tree Not Found")
    recursive = request.one("recursive", "false") in ("true", "1")
    try:
        entries = repository.tree(commit, request.one("path", "").strip("/"), recursive)
    except GitError:
        raise ApiError(404, "404 invalid revision or path Not Found") from None
    per_page = min(int(request.one("per_page", "20")), 100)
    after = request.one("page_token")
    if after:
        entries = entries[[_page_token(entry.path) for entry in entries].index(after) + 1 :]
    headers = {}
    if request.one("pagination") == "keyset" and len(entries) > per_page:
        query = {name: values[-1] for name, values in request.parameters.items()}
        query |= {"id": str(request.project.id), "page_token": _page_token(entries[per_page - 1].path)}
        target = f"{request.server.url}/api/v4/projects/{request.project.id}/repository/tree"
        headers["Link"] = f'<{target}?{urlencode(query)}>; rel="next"'
    listed = [
        {"id": e.id, "name": e.path.rsplit("/", 1)[-1], "type": e.type, "path": e.path, "mode": e.mode}
        for e in entries[:per_page]
    ]
    return Response(listed, headers=headers)


def _page_token(path: str) -> str:
    return hashlib.sha1(path.encode()).hexdigest()


def compare(request: Request) -> Response:
    """GET /projects/:id/repository/compare?from=&to=&straight="""
    repository = request.project.repository
    older = request.commit(request.required("from"), "404 Ref Not Found")
    newer = request.commit(request.required("to"), "404 Ref Not Found")
    straight = request.one("straight", "false") in ("true", "1")
    base = older if straight else repository.merge_base([older, newer]) or EMPTY_TREE
    commits = repository.commits("--reverse", f"{older}..{newer}")
    diffs = [
        {
            "diff": change.diff,
            "collapsed": False,
            "too_large": False,
            "new_path": change.path,
            "old_path": change.path,
            "a_mode": change.old_mode,
            "b_mode": change.new_mode,
            "new_file": change.status == "A",
            "renamed_file": False,
            "deleted_file": change.status == "D",
            "generated_file": None,
        }
        for change in repository.changes(base, newer)
    ]
    as_json = [_commit_json(request.server, request.project, commit) for commit in commits]
    return Response(
        {
            "commit": as_json[-1] if as_json else None,
            "commits": as_json,
            "diffs": diffs,
            "compare_timeout": False,
            "compare_same_ref": older == newer,
            "web_url": f"{request.server.url}/{request.project.path}/-/compare/{older}...{newer}",
        }
    )


def get_merge_base(request: Request) -> Response:
    """GET /projects/:id/repository/merge_base?refs[]=&refs[]="""
    refs = request.parameters.get("refs[]", [])
    if len(refs) < 2:
        raise ApiError(400, "Provide at least 2 refs")
    commits = []
    for ref in refs:
        commit = request.project.repository.resolve(ref)
        if commit is None:
            raise ApiError(400, f"Could not find ref: {ref}")
        commits.append(commit)
    base = request.project.repository.merge_base(commits)
    if base is None:
        raise ApiError(404, "404 Merge Base Not Found")
    return Response(_commit_json(request.server, request.project, request.project.repository.commit(base)))


def get_archive(request: Request) -> Response:
    """GET /projects/:id/repository/archive.tar.gz?sha=&path="""
    repository = request.project.repository
    ref = request.one("sha", repository.default_branch)
    commit = request.commit(ref, "404 File Not Found")
    prefix = f"{request.project.name}-{ref.replace('/', '-')}-{commit}"
    path = request.one("path")
    if path:
        prefix += "-" + path.strip("/").replace("/", "-")
    try:
        content = repository.archive(commit, prefix, path)
    except GitError:
        raise ApiError(404, "404 File Not Found") from None
    return Response(content, headers={"Content-Disposition": f'attachment; filename="{prefix}.tar.gz"'})


_STATES = ("pending", "running", "success", "failed", "canceled", "skipped")


def post_status(request: Request) -> Response:
    """POST /projects/:id/statuses/:sha

    GitLab updates the open (pending or running) status of the same name and ref and refuses to set it to
    the state it has, or back from running to pending, with 400; a finished one is followed by a new one.
    """
    commit = request.commit(request.parts[0], "404 Commit Not Found")
    state = request.required("state")
    if state not in _STATES:
        raise ApiError(400, {"error": "state does not have a valid value"})
    name = request.one("name") or request.one("context") or "default"
    ref = request.one("ref") or request.project.repository.default_branch
    for text in ("description", "target_url"):
        if len(request.one(text) or "") > 255:
            raise ApiError(400, {text: ["is too long (maximum is 255 characters)"]})
    with request.server.lock:
        status = next(
            (
                known
                for known in request.project.statuses
                if (known["sha"], known["name"], known["ref"]) == (commit, name, ref)
                and known["status"] in ("pending", "running")
            ),
            None,
        )
        if status and (status["status"] == state or state == "pending"):
            event = {"pending": "enqueue", "running": "run"}[state]
            raise ApiError(
                400,
                f"Cannot transition status via :{event} from :{status['status']} "
                f'(Reason(s): Status cannot transition via "{event}")',
            )
        if status is None:
            status = {
                "name": name,
                "sha": commit,
                "ref": ref,
                "created_at": _now(),
                "started_at": None,
                "coverage": None,
            }
            status |= {"allow_failure": False, "author": _USER, "target_url": None, "description": None}
            status["id"] = request.server._next_id = request.server._next_id + 1
            status["pipeline_id"] = request.project.id * 1000
            request.project.statuses.append(status)
        status["status"] = state
        status["started_at"] = status["started_at"] or (_now() if state == "running" else None)
        status["finished_at"] = _now() if state in ("success", "failed", "canceled") else None
        for text in ("description", "target_url"):
            status[text] = request.one(text, status[text])
    return Response(status, 201)


def list_statuses(request: Request) -> Response:
    """GET /projects/:id/repository/commits/:sha/statuses?ref=&name=&all="""
    commit = request.commit(request.parts[0], "404 Commit Not Found")
    found = [status for status in request.project.statuses if status["sha"] == commit]
    for key in ("name", "ref"):
        if request.one(key):
            found = [status for status in found if status[key] == request.one(key)]
    if request.one("all", "false") not in ("true", "1"):
        found = list({(status["name"], status["ref"]): status for status in found}.values())
    return Response(found)


def list_notes(request: Request) -> Response:
    """GET /projects/:id/merge_requests/:iid/notes, newest first"""
    iid = int(request.parts[0])
    return Response([note for note in reversed(request.project.notes) if note["noteable_iid"] == iid])


def create_note(request: Request) -> Response:
    """POST /projects/:id/merge_requests/:iid/notes"""
    note = {
        "id": request.server.new_id(),
        "body": request.required("body"),
        "author": _USER,
        "created_at": _now(),
        "updated_at": _now(),
        "system": False,
        "noteable_type": "MergeRequest",
        "noteable_iid": int(request.parts[0]),
        "project_id": request.project.id,
        "internal": request.one("internal", "false") == "true",
    }
    request.project.notes.append(note)
    return Response(note, 201)


def update_note(request: Request) -> Response:
    """PUT /projects/:id/merge_requests/:iid/notes/:note_id"""
    for note in request.project.notes:
        if (str(note["noteable_iid"]), str(note["id"])) == tuple(request.parts):
            note |= {"body": request.required("body"), "updated_at": _now()}
            return Response(note)
    raise ApiError(404, "404 Note Not Found")


# A part of a path is URL-encoded, so that it has no slash; it is decoded before the endpoint sees it.
_PART = "([^/]+)"
ROUTES: list[tuple[str, re.Pattern, Callable[[Request], Response]]] = [
    (method, re.compile(f"/api/v4/projects/{_PART}{path}"), endpoint)
    for method, path, endpoint in [
        ("GET", "", get_project),
        ("GET", "/repository/commits", list_commits),
        ("GET", f"/repository/commits/{_PART}", get_commit),
        ("GET", f"/repository/commits/{_PART}/statuses", list_statuses),
        ("GET", f"/repository/branches/{_PART}", get_branch),
        ("GET", f"/repository/files/{_PART}/raw", get_file_raw),
        ("GET", "/repository/tree", list_tree),
        ("GET", "/repository/compare", compare),
        ("GET", "/repository/merge_base", get_merge_base),
        ("GET", r"/repository/archive(?:\.tar\.gz)?", get_archive),
        ("POST", f"/statuses/{_PART}", post_status),
        ("GET", f"/merge_requests/{_PART}/notes", list_notes),
        ("POST", f"/merge_requests/{_PART}/notes", create_note),
        ("PUT", f"/merge_requests/{_PART}/notes/{_PART}", update_note),
    ]
]


# --- Webhooks --------------------------------------------------------------------------------------------


def push_payload(server: GitLab, project: Project, ref: str, before: str, after: str) -> dict:
    """The body of a push hook, built from git."""
    repository = project.repository
    if after == ZERO:
        commits = []
    elif before == ZERO:
        commits = repository.commits(after)
    else:
        commits = repository.commits(f"{before}..{after}")
    web_url = f"{server.url}/{project.path}"
    ssh_url = f"git@gitlab.example.com:{project.path}.git"
    address = {
        "name": project.name,
        "description": None,
        "homepage": web_url,
        "url": ssh_url,
        "git_ssh_url": ssh_url,
        "git_http_url": f"{web_url}.git",
        "visibility_level": 0,
    }
    return {
        "object_kind": "push",
        "event_name": "push",
        "before": before,
        "after": after,
        "ref": ref,
        "ref_protected": ref == f"refs/heads/{repository.default_branch}",
        "checkout_sha": None if after == ZERO else after,
        "message": None,
        "user_id": _USER["id"],
        "user_name": _USER["name"],
        "user_username": _USER["username"],
        "user_email": "[REDACTED]",
        "user_avatar": None,
        "project_id": project.id,
        "project": {
            **address,
            "id": project.id,
            "web_url": web_url,
            "avatar_url": None,
            "namespace": project.path.rsplit("/", 1)[0],
            "path_with_namespace": project.path,
            "default_branch": repository.default_branch,
            "ci_config_path": None,
            "ssh_url": ssh_url,
            "http_url": f"{web_url}.git",
        },
        "commits": [_hook_commit(project, web_url, c) for c in reversed(commits[:COMMITS_IN_HOOK])],
        "total_commits_count": len(commits),
        "push_options": {},
        "repository": address,
    }


def _hook_commit(project: Project, web_url: str, commit: Commit) -> dict:
    changes = project.repository.changes(commit.parents[0] if commit.parents else EMPTY_TREE, commit.id)
    return {
        "id": commit.id,
        "message": commit.message,
        "title": commit.title,
        "timestamp": commit.committed_date,
        "url": f"{web_url}/-/commit/{commit.id}",
        "author": {"name": commit.author_name, "email": "[REDACTED]"},
        "added": [change.path for change in changes if change.status == "A"],
        "modified": [change.path for change in changes if change.status in "MT"],
        "removed": [change.path for change in changes if change.status == "D"],
    }


def sign(signing_token: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    """A Standard Webhooks signature: HMAC-SHA256 over id, timestamp and body; the key is the Base64 after `whsec_`."""
    key = base64.b64decode(signing_token.removeprefix(TOKEN_PREFIX))
    digest = hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def deliver(server: GitLab, event: str, payload: dict, options: dict) -> dict:
    """Sends one webhook as GitLab 19 and later do and reports the receiver's answer.

    Options: `url`; `webhook_id` and `timestamp` (for resends and stale deliveries); `legacy` to send
    `X-Gitlab-Token` instead of a signature; `headers` to override or, with null, drop some.
    """
    url = options.get("url") or server.hook.url
    if not url:
        raise ApiError(400, "no hook: POST /_control/hook first")
    body = json.dumps(payload).encode()
    webhook_id = options.get("webhook_id") or str(uuid.uuid4())
    timestamp = str(options.get("timestamp") or int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitLab/19.2.0",
        "Idempotency-Key": webhook_id,
        "X-Gitlab-Event": event,
        "X-Gitlab-Instance": server.url,
        "X-Gitlab-Webhook-UUID": str(uuid.uuid4()),
        "X-Gitlab-Event-UUID": str(uuid.uuid4()),
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
    }
    if options.get("legacy") and server.hook.secret_token:
        headers["X-Gitlab-Token"] = server.hook.secret_token
    elif server.hook.signing_token:
        headers["webhook-signature"] = sign(server.hook.signing_token, webhook_id, timestamp, body)
    headers |= options.get("headers") or {}
    headers = {name: value for name, value in headers.items() if value is not None}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=HOOK_TIMEOUT_SECONDS) as response:
            status, answer = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, answer = error.code, error.read()
    except OSError as error:
        status, answer = 0, str(error).encode()
    return {
        "webhook_id": webhook_id,
        "status": status,
        "body": answer.decode(errors="replace"),
        "request": {"url": url, "headers": headers, "body": body.decode()},
    }


# --- Control ---------------------------------------------------------------------------------------------


def control_outage(server: GitLab, order: dict) -> dict:
    """POST /_control/outage {"count": N, "status": 503}: the next N API requests fail."""
    server.set_outage(int(order["count"]), int(order.get("status", 503)))
    return {}


def control_hook(server: GitLab, order: dict) -> dict:
    """POST /_control/hook {"url", "signing_token", "secret_token"}: what is given is changed."""
    for name in ("url", "signing_token", "secret_token"):
        if name in order:
            setattr(server.hook, name, order[name])
    return vars(server.hook) | {"signing_token": None, "secret_token": None}


def control_commit(server: GitLab, order: dict) -> dict:
    """POST /_control/commit {"project", "branch", "message", "files": {path: text or null}}

    Commits, and with `"push": true` (or delivery options) also sends the push hook.
    """
    project = server.project(str(order["project"]))
    branch = order.get("branch") or project.repository.default_branch
    files = {path: None if text is None else text.encode() for path, text in order["files"].items()}
    before, after = project.repository.write_commit(
        branch, order.get("message") or "Change\n", files, ("John Smith", "john@example.com")
    )
    result = {"ref": f"refs/heads/{branch}", "before": before, "after": after}
    if push := order.get("push"):
        options = push if isinstance(push, dict) else {}
        result["delivery"] = control_push(server, {**options, **result, "project": project.path})
    return result


def control_push(server: GitLab, order: dict) -> dict:
    """POST /_control/push {"project", "ref", "before", "after"} and the options of `deliver`.

    Without `after` the ref's tip is pushed; without `before`, the tip's parent was there before.
    """
    project = server.project(str(order["project"]))
    ref = order.get("ref") or f"refs/heads/{project.repository.default_branch}"
    after = order.get("after") or project.repository.resolve(ref)
    if after is None:
        raise ApiError(400, f"no commit at {ref}")
    before = order.get("before")
    if before is None:
        before = next(iter(project.repository.commit(after).parents), ZERO)
    return deliver(server, "Push Hook", push_payload(server, project, ref, before, after), order)


def control_deliver(server: GitLab, order: dict) -> dict:
    """POST /_control/deliver {"event", "payload"} and the options of `deliver`: any other hook."""
    return deliver(server, order["event"], order["payload"], order)


CONTROLS = {
    "/_control/outage": control_outage,
    "/_control/hook": control_hook,
    "/_control/commit": control_commit,
    "/_control/push": control_push,
    "/_control/deliver": control_deliver,
}


# --- HTTP ------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    # Head and body are sent apart; with Nagle and delayed ACKs an answer would take 40 ms more.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        target = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if control := CONTROLS.get(target.path):
                response = Response(control(self.server, json.loads(body or b"{}")))
            else:
                response = self.api(target.path, target.query, body)
        except ApiError as error:
            message = error.message
            is_error = isinstance(message, dict) and "error" in message
            response = Response(message if is_error else {"message": message}, error.status)
        except Exception as error:  # A fault of the stand-in: say it, as GitLab's 500 would not.
            response = Response({"message": f"500 Internal Server Error: {error!r}"}, 500)
        self.server.request_log.write(method=self.command, path=target.path, query=target.query, status=response.status)
        content = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
        self.send_response(response.status)
        kind = "application/octet-stream" if isinstance(response.body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, **response.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def api(self, path: str, query: str, body: bytes) -> Response:
        if status := self.server.outage():
            raise ApiError(status, f"{status} outage")
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        token = self.headers.get("PRIVATE-TOKEN") or bearer
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise ApiError(401, "401 Unauthorized")
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, endpoint in ROUTES:
            if route_method == method and (match := pattern.fullmatch(path)):
                project, *parts = (unquote(part) for part in match.groups())
                parameters = parse_qs(query, keep_blank_values=True) | self.form(body)
                return endpoint(Request(self.server, self.server.project(project), parts, parameters))
        raise ApiError(404, {"error": "404 Not Found"})

    def form(self, body: bytes) -> dict[str, list[str]]:
        """A body's parameters: JSON or a form."""
        if not body:
            return {}
        if self.headers.get_content_type() == "application/json":
            values = json.loads(body)
            return {name: [_text(value)] for name, value in values.items() if value is not None}
        return parse_qs(body.decode(), keep_blank_values=True)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_) -> None:
        """Silent: the request log has it."""


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
