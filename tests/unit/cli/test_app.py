"""Whatever goes wrong: one line on stderr, its exit code, and one JSON object on stdout where JSON was asked for."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support import FILES, manifest

from deploykit.cli import app
from deploykit.cli.app import COMMANDS, GROUPS
from deploykit.errors import BadInputError, DeploykitError, ResourceError, UnsupportedError, UsageError, of_os_error


class Typed:
    """Types a command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        with self.monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["deploykit", *words])
            patched.setattr(sys, "stdout", sys.stdout)  # put back afterwards
            patched.setattr(sys, "stderr", sys.stderr)
            with pytest.raises(SystemExit) as ending:
                app.main()
        told = self.capsys.readouterr()
        code = ending.value.code
        assert isinstance(code, int)
        return code, told.out, told.err


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(monkeypatch, capsys)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of things that are no bundle and no model, and a bundle that was changed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "manifest.json").write_bytes(manifest(FILES).to_bytes())
    (tmp_path / "changed" / "net.fp32.onnx").write_bytes(b"changed")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("exprt",), 2, "no such command 'exprt'"),
        (("export",), 2, "missing argument 'MODEL'"),
        (("export", "tiny-convnext", "--opnvino"), 2, "no such option: --opnvino"),
        (("export", "tiny-convnext", "--batch", "0"), 2, "invalid value for '--batch'"),
        (("export", "tiny-convnet"), 2, "is no model that I know"),
        (("export", "tiny-convnext", "--out", "empty.onnx"), 2, "can't be a folder"),
        (("export", "tiny-convnext", "--out", "x" * 300), 2, "File name too long"),
        (("build", "nowhere"), 2, "nowhere does not exist"),
        (("build", "folder.onnx"), 7, "is no bundle"),
        (("verify", "empty.onnx"), 2, "nothing says what it should compute"),
        (("verify", "changed"), 7, "net.fp32.onnx has SHA-256"),
        (("verify", "changed", "--html", "folder.onnx"), 5, "it is a folder"),
        (("verify", "x" * 5000), 2, "File name too long"),
        (("bench", "empty.onnx"), 2, "empty.onnx is a file: a bundle is a folder"),
        (("bench", "changed", "--rounds", "many"), 2, "invalid value for '--rounds'"),
        (("inspect", "empty.onnx"), 7, "is empty"),
        (("inspect", "nothing.txt"), 2, "nothing that a backend opens"),
        (("doctor", "--all"), 2, "no such option: --all"),
        (("models", "a", "b"), 2, "unexpected extra argument"),
        (("run", "folder.onnx", "photo.jpg"), 2, "holds no artifact"),
        (("run", "photo.jpg", "folder.onnx"), 2, "photo.jpg is an image: the artifact comes first"),
        (("run", "nowhere", "photo.jpg"), 2, "nowhere does not exist"),
        (("run", "changed", "photo.jpg"), 7, "net.fp32.onnx has SHA-256"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_an_error_is_a_line_and_with_json_an_object(
    typed: Typed, files: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = typed(*words)
    assert (found, out) == (code, "")
    assert message in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    found, out, err = typed(*words, "--json")
    error = json.loads(out)["error"]
    assert (found, error["exit_code"]) == (code, code)
    assert message in error["message"]
    assert all(set(hint) == {"action", "effect"} for hint in error["hints"])


WORDS = [
    *(command.COMMAND.__name__ for command in COMMANDS),
    *(f"{g.NAME} {name}" for g in GROUPS for name in g.COMMANDS),
]


@pytest.mark.parametrize("command", WORDS)
def test_every_command_has_json_and_its_errors_too(typed: Typed, command: str) -> None:
    code, out, _ = typed(*command.split(), "--json", "--no-such-option")
    assert code == 2
    assert "no such option: --no-such-option" in json.loads(out)["error"]["message"]


def test_words_in_another_order_are_put_right(typed: Typed) -> None:
    code, _, err = typed("tiny-convnext", "export")
    assert code == 2
    assert "deploykit export tiny-convnext   the command comes first" in err


@pytest.mark.parametrize("word", ["ort", "-ort"])
def test_an_option_without_its_dashes_is_told(typed: Typed, word: str) -> None:
    code, _, err = typed("export", "tiny-convnext", word)
    assert code == 2
    assert "--ort" in err
    assert "is an option" in err


def test_nothing_typed_is_the_help(typed: Typed) -> None:
    code, out, err = typed()
    assert code == 2
    assert "Usage: deploykit" in out + err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (BadInputError("damaged"), 7),
        (UnsupportedError("refused"), 8),
        (MemoryError("cannot allocate"), 5),
        (OSError(errno.ENOSPC, "No space left on device", "/full/file"), 5),
        (PermissionError(errno.EACCES, "Permission denied", "/ro/file"), 5),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "folder"), 2),
        (ZeroDivisionError("division by zero"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_command_raises_becomes_its_code_and_an_object(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def break_off() -> Any:
        raise raised

    monkeypatch.setattr("deploykit.cli.doctor._findings", break_off)
    found, out, err = typed("doctor", "--json")
    error = json.loads(out)["error"]
    assert (found, error["exit_code"]) == (code, code)
    assert error["message"]
    assert ("Traceback" in err) == (code == 1), "a traceback is for our own bugs"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), UsageError, "a: No such file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 900), UsageError, "File name too long"),
        (OSError(errno.EROFS, "Read-only file system", "a"), ResourceError, "a: Read-only file system"),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), ResourceError, "a, b: Cross-device link"),
        (OSError("no number at all"), ResourceError, "no number at all"),
    ],
)
def test_what_the_system_refuses_is_an_error_of_ours(error: OSError, kind: type[DeploykitError], message: str) -> None:
    found = of_os_error(error)
    assert type(found) is kind
    assert found.message.endswith(message)
    assert len(found.message) < 300
