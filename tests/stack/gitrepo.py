"""A bare git repository, read and written with git's plumbing commands."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ZERO = "0" * 40
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""The id git gives to a tree without entries; comparing with it lists a commit's whole content."""

_COMMIT_FIELDS = ("%H", "%P", "%an", "%ae", "%aI", "%cn", "%ce", "%cI", "%B")


class GitError(Exception):
    """git refused; the message is its own."""


@dataclass(frozen=True)
class Commit:
    """What `git log` tells of one commit. Dates are RFC 3339 with the author's offset."""

    id: str
    parents: list[str]
    author_name: str
    author_email: str
    authored_date: str
    committer_name: str
    committer_email: str
    committed_date: str
    message: str

    @property
    def title(self) -> str:
        return self.message.split("\n", 1)[0]


@dataclass(frozen=True)
class Entry:
    """One line of `git ls-tree`."""

    mode: str
    type: str
    id: str
    path: str


@dataclass(frozen=True)
class Change:
    """One path that differs between two commits; `status` is git's letter (A, M, D, T)."""

    status: str
    old_mode: str
    new_mode: str
    path: str
    diff: str


class Repository:
    """The repository at `path`; created when it is missing."""

    def __init__(self, path: Path, default_branch: str = "main"):
        self.path = path
        self.default_branch = default_branch
        if not (path / "HEAD").exists():
            path.mkdir(parents=True, exist_ok=True)
            self.git("init", "--quiet", "--bare", f"--initial-branch={default_branch}", ".")

    def git(self, *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None) -> bytes:
        """Runs git here and returns its output; `GitError` when it fails."""
        # The user's and the machine's configuration must not change what a test sees.
        isolated = {
            "PATH": os.environ["PATH"],
            "GIT_DIR": str(self.path),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            **(environment or {}),
        }
        done = subprocess.run(["git", *arguments], cwd=self.path, env=isolated, input=stdin, capture_output=True)
        if done.returncode != 0:
            raise GitError(done.stderr.decode(errors="replace").strip())
        return done.stdout

    def resolve(self, ref: str) -> str | None:
        """The commit a branch, tag or (short) id means, if there is one."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", "--end-of-options", ref + "^{commit}").decode().strip()
        except GitError:
            return None

    def branch(self, name: str) -> str | None:
        """The commit at the tip of a branch."""
        return self.resolve(f"refs/heads/{name}")

    def commits(self, *revisions: str, limit: int | None = None) -> list[Commit]:
        """The commits `git log` would show for the revisions, newest first."""
        form = "%x00".join(_COMMIT_FIELDS) + "%x00%x01"
        bound = [f"--max-count={limit}"] if limit else []
        text = self.git("log", *bound, f"--format={form}", *revisions, "--").decode()
        records = [record.lstrip("\n").split("\0") for record in text.split("\x01")]
        return [Commit(r[0], r[1].split(), *r[2:9]) for r in records if len(r) > 8]

    def commit(self, revision: str) -> Commit:
        """One commit."""
        return self.commits(revision, limit=1)[0]

    def tree(self, commit: str, path: str, recursive: bool) -> list[Entry]:
        """The entries below a folder, in git's order; with folders too, as GitLab lists them."""
        spec = f"{commit}:{path}" if path else f"{commit}^{{tree}}"
        flags = ["-r", "-t"] if recursive else []
        lines = self.git("ls-tree", "-z", *flags, spec).decode().split("\0")
        prefix = f"{path}/" if path else ""
        entries = []
        for line in filter(None, lines):
            attributes, name = line.split("\t", 1)
            mode, kind, identity = attributes.split(" ")
            entries.append(Entry(mode, kind, identity, prefix + name))
        return entries

    def file(self, commit: str, path: str) -> bytes | None:
        """A file's content at a commit."""
        try:
            return self.git("cat-file", "blob", f"{commit}:{path}")
        except GitError:
            return None

    def changes(self, older: str, newer: str) -> list[Change]:
        """The paths that differ from `older` to `newer`, with unified diffs without the file headers."""
        fields = self.git("diff-tree", "-r", "-z", "--raw", "--no-renames", older, newer).decode().split("\0")
        changes = []
        for attributes, path in zip(fields[0::2], fields[1::2], strict=False):
            old_mode, new_mode, _, _, status = attributes.lstrip(":").split(" ")
            text = self.git("diff-tree", "-r", "-p", "--no-renames", older, newer, "--", path)
            hunks = text.decode(errors="replace").partition("\n@@")
            diff = hunks[1].lstrip("\n") + hunks[2]
            changes.append(Change(status, old_mode, new_mode, path, diff))
        return changes

    def merge_base(self, revisions: list[str]) -> str | None:
        """The best common ancestor of all revisions."""
        try:
            return self.git("merge-base", "--octopus", *revisions).decode().strip() or None
        except GitError:
            return None

    def archive(self, commit: str, prefix: str, path: str | None) -> bytes:
        """A gzipped tar of a commit or of one folder in it."""
        return self.git("archive", "--format=tar.gz", f"--prefix={prefix}/", commit, *([path] if path else []))

    def write_commit(
        self, branch: str, message: str, files: dict[str, bytes | None], author: tuple[str, str]
    ) -> tuple[str, str]:
        """Commits changed files (`None` deletes) on top of a branch, which is created if it is missing.

        Returns the branch's commits before and after; before is `ZERO` for a new branch, which starts
        from the default branch's tip if there is one.
        """
        before = self.branch(branch)
        parent = before or self.branch(self.default_branch)
        index = {"GIT_INDEX_FILE": str(self.path / f"index-{os.urandom(8).hex()}")}
        try:
            self.git("read-tree", *([parent] if parent else ["--empty"]), environment=index)
            for path, content in files.items():
                # Mode 0 removes a path.
                entry = f"0 {ZERO}\t{path}\n"
                if content is not None:
                    blob = self.git("hash-object", "-w", "--stdin", stdin=content).decode().strip()
                    entry = f"100644 {blob}\t{path}\n"
                self.git("update-index", "--index-info", stdin=entry.encode(), environment=index)
            tree = self.git("write-tree", environment=index).decode().strip()
        finally:
            Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
        name, email = author
        identity = {
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": email,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email,
        }
        parents = ["-p", parent] if parent else []
        after = self.git("commit-tree", tree, *parents, "-F", "-", stdin=message.encode(), environment=identity)
        after = after.decode().strip()
        self.git("update-ref", f"refs/heads/{branch}", after, before or ZERO)
        return before or ZERO, after
