import pytest

from swa_attn.runner.tokenizer import ByteStream, ByteTokenizer
from swa_attn.runner.workload import SYSTEM_PROMPT, build_workload, source_files

SOURCE = '''\
import os


def first(path):
    """Return the first line."""
    path = os.fspath(path)
    with open(path) as f:
        line = f.readline()
    return line.strip()


def short():
    return 1
'''


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text(SOURCE)
    (tmp_path / "pkg" / "b.py").write_text(SOURCE.replace("first", "second"))
    (tmp_path / "pkg" / "broken.py").write_text("def (:\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.py").write_text(SOURCE)
    return tmp_path


def test_hidden_folders_are_left_out(repo):
    assert [f.name for f in source_files(repo)] == ["a.py", "b.py", "broken.py"]


def test_prompts_share_the_opening_and_grow_by_turns(repo):
    workload = build_workload(repo, users=2, turns=2, context_bytes=10_000)
    assert workload.opening.startswith(SYSTEM_PROMPT) and "# file: pkg/a.py\n" + SOURCE in workload.opening
    first = workload.prompt("user-1", [])
    assert first.endswith('def first(path):\n    """Return the first line."""\n    path = os.fspath(path)\n')
    second = workload.prompt("user-1", ["    return open(path).readline()\n"])
    assert second.startswith(first + "    return open(path).readline()\n") and len(second) > len(first) + 30
    assert workload.prompt("user-2", []).startswith(workload.opening)


def test_context_takes_whole_files_only(repo):
    context = build_workload(repo, users=1, turns=1, context_bytes=len(SOURCE) + 100).opening
    assert context.count("# file: ") == 2 and "# file: pkg/broken.py" in context  # the second full file did not fit


def test_a_tree_without_python_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--repo must be a source tree with Python files"):
        build_workload(tmp_path, users=1, turns=1, context_bytes=1000)


def test_bytes_stream_as_characters():
    text = "naïve → 日本"
    tokens = [*ByteTokenizer().encode(text), 256]
    stream = ByteStream()
    pieces = [stream.feed(t) for t in tokens]
    assert "".join(pieces) == text == ByteTokenizer().decode(tokens)
    assert pieces[2] == "" and pieces[3] == "ï"
