"""A coding-assistant session over a source tree: what several users send, turn by turn.

Every request repeats the system prompt, the repository context and the conversation so far, as chat APIs require. That is
the traffic a prefix cache lives on: long shared beginnings, short new ends.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PROMPT = '''\
"""You are a coding assistant.

The files below belong to the repository the user works on. Every request shows the first half of a function.
Continue it in the style of the repository: plain names, short functions, no comments that repeat the code.
"""

'''

SKIPPED_FOLDERS = {"build", "dist", "node_modules", "site-packages", "venv", "__pycache__"}


@dataclass(frozen=True)
class Workload:
    """`opening` is what all users share; `messages[user][turn]` is what a user adds at a turn."""

    opening: str
    messages: dict[str, list[str]]

    def prompt(self, user: str, replies: list[str]) -> str:
        """The request of a user's next turn, given the assistant's replies so far."""
        said = self.messages[user]
        past = "".join(message + reply for message, reply in zip(said, replies, strict=False))
        return self.opening + past + said[len(replies)]


def source_files(repo: Path) -> list[Path]:
    """The readable Python files of a tree, by path, without hidden and generated folders."""
    files = []
    for file in sorted(repo.rglob("*.py")):
        folders = file.relative_to(repo).parts[:-1]
        if not any(f in SKIPPED_FOLDERS or f.startswith(".") for f in folders) and file.is_file():
            files.append(file)
    return files


def repository_context(repo: Path, files: list[Path], budget: int) -> str:
    """The first files of the tree that fit `budget` bytes together, whole, each under a header with its path."""
    text = ""
    for file in files:
        piece = f"# file: {file.relative_to(repo).as_posix()}\n{_read(file)}\n"
        if len((text + piece).encode()) <= budget:
            text += piece
    return text


def function_beginnings(repo: Path, files: list[Path], longest: int = 500) -> list[str]:
    """One task per function worth completing, under its file's path: the first half of its statements, the rest is asked."""
    tasks = []
    for file in files:
        source = _read(file)
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        lines = source.splitlines(keepends=True)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or len(node.body) < 4:
                continue
            cut = node.body[len(node.body) // 2].lineno - 1
            text = "".join(lines[node.lineno - 1 : cut])
            if len(text.encode()) <= longest:
                tasks.append(f"\n\n# file: {file.relative_to(repo).as_posix()}\n{text}")
    return tasks


def build_workload(repo: Path, users: int, turns: int, context_bytes: int) -> Workload:
    """A session over `repo`. Raises ValueError if the tree has too little Python for it."""
    files = source_files(repo)
    context = repository_context(repo, files, context_bytes)
    tasks = function_beginnings(repo, files)
    if not context or not tasks:
        raise ValueError(
            f"--repo must be a source tree with Python files of at most {context_bytes} bytes and functions in them, "
            f"got {repo} with {len(files)} Python files and {len(tasks)} usable functions"
        )
    stride = max(1, len(tasks) // (users * turns))  # spread over the tree
    names = [f"user-{i + 1}" for i in range(users)]
    messages = {
        name: [tasks[(turn * users + i) * stride % len(tasks)] for turn in range(turns)] for i, name in enumerate(names)
    }
    return Workload(SYSTEM_PROMPT + context, messages)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
