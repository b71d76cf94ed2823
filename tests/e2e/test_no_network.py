"""No telemetry: a whole session of work opens no network socket, in any of its processes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.support import python, run

# Loaded by every Python process that inherits PYTHONPATH, before anything else runs.
HOOK = """
import os, sys
def _watch(event, args):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["SOCKET_LOG"], "a") as log:
            log.write(f"{event} {args!r}\\n")
    elif event == "socket.__new__" and args[1] != 1:  # 1: AF_UNIX
        with open(os.environ["SOCKET_LOG"], "a") as log:
            log.write(f"{event} family {args[1]}\\n")
sys.addaudithook(_watch)
"""


def _watched(tmp_path: Path) -> tuple[dict[str, str], Path]:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    log = tmp_path / "sockets.log"
    path = os.pathsep.join(filter(None, [str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")]))
    # Some libraries keep quiet under CI only: that would hide what users get.
    quiet = {"CI": "", "TF_BUILD": "", "JENKINS_URL": ""}
    return {"PYTHONPATH": path, "SOCKET_LOG": str(log), "DEPLOYKIT_CACHE": str(tmp_path / "cache"), **quiet}, log


def test_the_watch_sees_a_socket(tmp_path: Path) -> None:
    env, log = _watched(tmp_path)
    python("-c", "import socket; socket.socket().close()", env=env)
    assert "socket.__new__" in log.read_text()


def test_export_verify_bench_and_doctor_open_none(tmp_path: Path) -> None:
    env, log = _watched(tmp_path)
    out = str(tmp_path / "bundle")
    for words in (
        ("export", "tiny-convnext", "--ort", "--openvino", "--eval-size", "32", "--out", out),
        ("verify", out),
        ("bench", out, "--rounds", "1"),
        ("doctor",),
    ):
        outcome = run(*words, env=env)
        assert outcome.code in {0, 6}, outcome.err
    assert not log.exists() or log.read_text() == ""
