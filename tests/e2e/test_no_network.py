"""No telemetry: a whole session of work opens no network socket, in any of its processes, by Python or by native code."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.support import fresh, python

# Loaded by every Python process that inherits PYTHONPATH, before anything else runs.
PYTHON_WATCH = """
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

# Loaded before libc by every process that inherits LD_PRELOAD: runtimes bring network code that Python never sees.
NATIVE_WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
static void note(const char *what, const char *whom) {
    FILE *log = fopen(getenv("SOCKET_LOG"), "a");
    if (log) { fprintf(log, "native %s %s\n", what, whom ? whom : ""); fclose(log); }
}
int socket(int domain, int type, int protocol) {
    if (domain == AF_INET || domain == AF_INET6) note("socket", "");
    int (*real)(int, int, int) = dlsym(RTLD_NEXT, "socket");
    return real(domain, type, protocol);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    note("getaddrinfo", node);
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(node, service, hints, found);
}
"""
# Some libraries keep quiet under CI only: that would hide what users get.
NOT_CI = {"CI": "", "TF_BUILD": "", "JENKINS_URL": "", "GITHUB_ACTIONS": ""}
# What we switch telemetry off by must be set by us, not by who runs the tests.
NOT_SET = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")


COMPILER = shutil.which("cc") or shutil.which("gcc")


def _watched(tmp_path: Path, *, by_python: bool, by_native: bool) -> tuple[dict[str, str], Path]:
    """Return an environment whose processes write every network call to a log, and the log."""
    log = tmp_path / "sockets.log"
    env = {"SOCKET_LOG": str(log), "DEPLOYKIT_CACHE": str(tmp_path / "cache"), **NOT_CI}
    if by_python:
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook" / "sitecustomize.py").write_text(PYTHON_WATCH)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")]))
    if by_native and COMPILER is not None:
        source, library = tmp_path / "watch.c", tmp_path / "watch.so"
        source.write_text(NATIVE_WATCH)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        env["LD_PRELOAD"] = str(library)
    return env, log


@pytest.fixture(autouse=True)
def _as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NOT_SET:
        monkeypatch.delenv(name, raising=False)


def test_the_watch_on_python_sees_a_socket(tmp_path: Path) -> None:
    env, log = _watched(tmp_path, by_python=True, by_native=False)
    python("-c", "import socket; socket.socket().close()", env=env)
    assert "socket.__new__" in log.read_text()


@pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the watch on native code with")
def test_the_watch_on_native_code_sees_a_socket(tmp_path: Path) -> None:
    env, log = _watched(tmp_path, by_python=False, by_native=True)
    python("-c", "import socket; socket.socket().close()", env=env)
    assert "native socket" in log.read_text()


def test_export_verify_bench_and_doctor_open_none(tmp_path: Path) -> None:
    env, log = _watched(tmp_path, by_python=True, by_native=True)
    out = str(tmp_path / "bundle")
    for words in (
        ("export", "tiny-convnext", "--ort", "--openvino", "--no-bench", "--eval-size", "32", "--out", out),
        ("verify", out),
        ("bench", out, "--rounds", "1"),
        ("doctor",),
    ):
        outcome = fresh(*words, env=env)
        assert outcome.code in {0, 6}, outcome.err
    assert not log.exists() or log.read_text() == ""


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed here")
def test_a_diffusion_model_sends_nothing(tmp_path: Path) -> None:
    """Importing diffusers imports urllib3, which binds a socket to ::1 once, to learn whether there is IPv6."""
    env, log = _watched(tmp_path, by_python=True, by_native=True)
    out = str(tmp_path / "bundle")
    for words in (
        ("export", "tiny-lcm-unet", "--fp16", "--ort", "--openvino", "--no-bench", "--out", out),
        ("run", out, "--png", str(tmp_path / "pictures.png")),
    ):
        outcome = fresh(*words, env=env)
        assert outcome.code == 0, outcome.err
    told = log.read_text().splitlines() if log.exists() else []
    here = ("socket.__new__ family 10", "native socket")
    others = [line for line in told if line.strip() not in here and not line.endswith("('::1', 0))")]
    assert others == []
