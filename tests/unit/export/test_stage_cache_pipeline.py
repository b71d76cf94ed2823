from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import STAGE, Log, Suffix, append, chain, given_item, stage

from deploykit.artifact import FileRecord
from deploykit.errors import BadInputError, DeploykitError, InternalError, MissingComponentError, ResourceError
from deploykit.export.cache import FILES, STALE_SECONDS, Cache, Entry, Made
from deploykit.export.pipeline import Pipeline, Silent, record_of
from deploykit.export.stage import Facts, Inputs, Item, Node, Plan, Stage, Workspace


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    yield Cache(tmp_path / "cache")
    assert list((tmp_path / "cache/tmp").glob("*")) == [], "a workspace was left behind"


@pytest.fixture
def source(tmp_path: Path) -> Item:
    return given_item(tmp_path / "given")


def run(cache: Cache, plan: Plan) -> tuple[dict[str, Made], Log]:
    log = Log()
    return Pipeline(cache, log).run(plan), log


def text_of(made: Made) -> str:
    made.item.check()
    return made.item.path("t.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([Node("n", STAGE, Suffix(), {"text": "nowhere"})], "'nowhere' is 'not made before it'"),
        ([Node("n", STAGE, Suffix(), {"text": "n"})], "not made before it"),
        (
            [Node("b", STAGE, Suffix(), {"text": "a"}), Node("a", STAGE, Suffix(), {"text": "source"})],
            "not made before",
        ),
        ([Node("n", STAGE, Suffix(), {})], r"given \[\]; it takes \['text'\]"),
        ([Node("n", STAGE, Suffix(), {"text": "source", "more": "source"})], r"given \['more', 'text'\]"),
        ([Node("n", STAGE, Suffix(), {"txt": "source"})], r"given \['txt'\]"),
        ([Node("n", STAGE, Suffix(), {"text": "source"})] * 2, "two nodes 'n'"),
        ([Node("source", STAGE, Suffix(), {"text": "source"})], "two nodes 'source'"),
        ([Node("n", STAGE, Suffix(), {"text": "picture"})], "takes 'text' as 'text', but 'picture' is 'image'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_anything_runs(
    tmp_path: Path, source: Item, nodes: list[Node], words: str
) -> None:
    picture = dataclasses.replace(source, kind="image")
    sound = Node("sound", STAGE, Suffix(), {"text": "source"})
    with pytest.raises(InternalError, match=words):
        run(Cache(tmp_path / "cache"), Plan({"source": source, "picture": picture}, (sound, *nodes)))
    assert not (tmp_path / "cache").exists()


def test_a_second_run_takes_all_from_the_cache(cache: Cache, source: Item) -> None:
    plan = chain(source, "b", "c")
    first, log = run(cache, plan)
    assert (text_of(first["n1"]), log.ran, log.cached, log.steps) == ("abc", ["n0", "n1"], [], [(1, 2)] * 2)
    second, log = run(cache, plan)
    assert (log.ran, log.cached) == ([], ["n0", "n1"])
    assert [made.item for made in second.values()] == [made.item for made in first.values()]
    assert second["n1"].item.facts == {"length": 3}
    assert plan.text() == "n0 → n1"


def test_a_change_runs_again_what_depends_on_it_and_no_more(tmp_path: Path, cache: Cache, source: Item) -> None:
    run(cache, chain(source, "b", "c"))
    newer = dataclasses.replace(STAGE, version=2)
    changed = Node("n1", newer, Suffix("c"), {"text": "n0"})
    cases: dict[str, tuple[Plan, list[str]]] = {
        "last options": (chain(source, "b", "C"), ["n1"]),
        "first options": (chain(source, "B", "c"), ["n0", "n1"]),
        "content": (chain(given_item(tmp_path / "other", "z"), "b", "c"), ["n0", "n1"]),
        "version": (Plan({"source": source}, (chain(source, "b").nodes[0], changed)), ["n1"]),
        "name": (chain(source, "b", "c", of=dataclasses.replace(STAGE, name="other")), ["n0", "n1"]),
        "another folder, same content": (chain(given_item(tmp_path / "copy"), "b", "c"), []),
    }
    assert {name: run(cache, plan)[1].ran for name, (plan, _) in cases.items()} == {
        name: ran for name, (_, ran) in cases.items()
    }


@given(st.tuples(st.text(), st.integers(), st.text()), st.tuples(st.text(), st.integers(), st.text()))
def test_keys_are_equal_only_for_equal_work(one: tuple[str, int, str], two: tuple[str, int, str]) -> None:
    def key(name: str, version: int, text: str) -> str:
        made = Node("n", Stage(name, version, {}, "text", (), append), Suffix(text), {})
        return Cache(Path("unused")).key(made, {"text": text})

    assert (key(*one) == key(*two)) == (one == two)


def test_the_versions_of_the_libraries_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node("n", dataclasses.replace(STAGE, libraries=("onnx",)), Suffix(), {})
    keys = set()
    for version in ("1.0", "2.0"):
        monkeypatch.setattr("deploykit.optional.metadata.version", lambda _name, version=version: version)
        keys.add(Cache(Path("unused")).key(node, {}))
    assert len(keys) == 2


def entry_file(made: Made) -> Path:
    return made.item.root.parent / "entry.json"


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def edit(path: Path, key: str, value: object) -> None:
    """Change what an entry says, and leave its files as they are."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), key: value}), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: flip(made.item.path("t.txt")),
        lambda made: made.item.path("t.txt").unlink(),
        lambda made: shutil.rmtree(made.item.root),
        lambda made: entry_file(made).unlink(),
        lambda made: entry_file(made).write_bytes(b"{"),
        lambda made: entry_file(made).write_bytes(b""),
        lambda made: edit(entry_file(made), "facts", {"length": 3}),
        lambda made: edit(entry_file(made), "facts", {}),
        lambda made: edit(entry_file(made), "libraries", {"torch": "9.9"}),
        lambda made: edit(entry_file(made), "seal", "0" * 64),
        lambda made: edit(entry_file(made), "kind", "texts"),
        lambda made: shutil.rmtree(made.item.root.parent),
    ],
    ids=[
        "byte",
        "file gone",
        "files gone",
        "entry gone",
        "entry damaged",
        "entry empty",
        "facts",
        "no facts",
        "libraries",
        "seal",
        "kind",
        "all gone",
    ],
)
@pytest.mark.parametrize("after", [(), ("c",)], ids=["no stage reads it", "a stage reads it"])
def test_a_damaged_entry_is_made_again(
    cache: Cache, source: Item, damage: Callable[[Made], object], after: tuple[str, ...]
) -> None:
    first, _ = run(cache, chain(source, "b"))
    damage(first["n0"])
    results, log = run(cache, chain(source, "b", *after))
    assert (text_of(list(results.values())[-1]), log.ran) == ("".join(["ab", *after]), list(results))
    _, log = run(cache, chain(source, "b", *after))
    assert log.ran == []


def test_a_damaged_entry_that_cannot_be_removed_ends_in_an_error(
    cache: Cache, source: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that turned read-only: no endless attempts."""
    flip(run(cache, chain(source, "b"))[0]["n0"].item.path("t.txt"))
    tried: list[object] = []

    def refuse(path: object, ignore_errors: bool = False, **_options: object) -> None:
        tried.append(path)
        if len(tried) > 20:
            pytest.fail("it is tried for ever")
        if not ignore_errors:
            raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(ResourceError, match="Read-only"):
            run(cache, chain(source, "b", "c"))


def test_results_are_read_only_files(cache: Cache, source: Item) -> None:
    seen: list[int] = []

    def watch(inputs: Inputs, options: Suffix, workspace: Workspace) -> Facts:
        seen.append(stat.S_IMODE(inputs["text"].path("t.txt").stat().st_mode))
        (workspace.folder / "deep").mkdir()
        (workspace.folder / "deep/x").touch()
        return append(inputs, options, workspace)

    results, _ = run(cache, Plan({"source": source}, (*chain(source, "b").nodes, *second(watch))))
    assert seen == [0o444]
    modes = {record.path: (results["n1"].item.root / record.path).stat().st_mode for record in results["n1"].item.files}
    assert {path: stat.S_IMODE(mode) for path, mode in modes.items()} == {"deep/x": 0o444, "t.txt": 0o444}


def second(work: Callable[[Inputs, Any, Workspace], Facts]) -> tuple[Node]:
    return (Node("n1", dataclasses.replace(STAGE, name="second", run=work), Suffix(), {"text": "n0"}),)


def failing(error: BaseException) -> Callable[[Inputs, Any, Workspace], Facts]:
    def work(inputs: Inputs, options: Any, workspace: Workspace) -> Facts:
        (workspace.folder / "half.bin").write_bytes(b"half")
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError, "can't be written: No space left"),
        (OSError(errno.EROFS, "Read-only file system"), ResourceError, "Read-only"),
        (FileNotFoundError(errno.ENOENT, "gone"), InternalError, "unexpected FileNotFoundError"),
        (BadInputError("bad weights"), BadInputError, "bad weights"),
        (ValueError("a bug"), ValueError, "a bug"),
        (KeyboardInterrupt("by the user"), KeyboardInterrupt, "by the user"),
    ],
)
def test_a_stage_that_fails_leaves_nothing_and_keeps_what_was_made(
    cache: Cache, source: Item, error: BaseException, kind: type[BaseException], words: str
) -> None:
    plan = Plan({"source": source}, (*chain(source, "b").nodes, *second(failing(error))))
    with pytest.raises(kind, match=words):
        run(cache, plan)
    entries = list((cache.root / "items").glob("*/*"))
    assert len(entries) == 1
    _, log = run(cache, Plan({"source": source}, (*chain(source, "b").nodes, *second(append))))
    assert (log.ran, log.cached) == (["n1"], ["n0"])


def test_a_full_disk_names_the_cache_and_another_place(cache: Cache, source: Item) -> None:
    with pytest.raises(ResourceError) as caught:
        run(cache, chain(source, "b", of=stage(failing(OSError(errno.ENOSPC, "No space left on device")))))
    assert str(cache.root) in caught.value.message
    assert caught.value.hints[0].action == "DEPLOYKIT_CACHE=DIR"


@pytest.mark.parametrize("folders", [0, 1])
def test_a_stage_that_writes_no_file_broke_its_promise(cache: Cache, source: Item, folders: int) -> None:
    def idle(inputs: Inputs, options: Any, workspace: Workspace) -> Facts:
        for index in range(folders):
            (workspace.folder / str(index)).mkdir()
        return {}

    with pytest.raises(InternalError, match="wrote no files"):
        run(cache, chain(source, "b", of=stage(idle)))


def test_a_result_that_is_not_what_was_promised_is_not_kept(cache: Cache, source: Item) -> None:
    def ensure(inputs: Inputs, options: Suffix, made: Item) -> None:
        if made.facts["length"] > len(inputs["text"].path("t.txt").read_bytes()):
            raise InternalError("the text grew")

    with pytest.raises(InternalError, match="the text grew"):
        run(cache, chain(source, "b", of=dataclasses.replace(STAGE, ensure=ensure)))
    assert not list((cache.root / "items").glob("*/*"))


def test_a_library_that_is_absent_is_told_before_the_work(cache: Cache, source: Item, tmp_path: Path) -> None:
    (cache.root / "tmp").mkdir(parents=True)
    with pytest.raises(MissingComponentError, match="TensorRT"):
        run(
            cache, chain(source, "b", of=dataclasses.replace(STAGE, libraries=("tensorrt",), run=failing(ValueError())))
        )


def test_what_a_library_says_is_swallowed_and_what_it_raises_is_not(
    cache: Cache, source: Item, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(inputs: Inputs, options: Suffix, workspace: Workspace) -> Facts:
        sys.stdout.write("chatter")
        sys.stderr.write("chatter")
        warnings.warn("chatter", stacklevel=1)
        return append(inputs, options, workspace)

    run(cache, chain(source, "b", of=stage(noisy)))
    assert capfd.readouterr() == ("", "")


def test_only_stale_workspaces_of_killed_writers_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    killed, running = cache.workspace(), cache.workspace()
    long_ago = time.time() - STALE_SECONDS - 60
    os.utime(killed, (long_ago, long_ago))
    newest = cache.workspace()
    assert sorted((cache.root / "tmp").iterdir()) == sorted([running, newest])
    assert list((newest / FILES).iterdir()) == []


def entry_of(folder: Path, text: str) -> Entry:
    (folder / FILES / "t.txt").write_text(text, encoding="utf-8")
    return Entry("text", (FileRecord.of(folder / FILES, "t.txt"),), {}, {}, 0.5)


def test_who_comes_second_leaves_the_first_entry_standing(cache: Cache) -> None:
    key = "ab" * 32
    folders = [cache.workspace(), cache.workspace()]
    entries = [entry_of(folder, "same") for folder in folders]
    stored = [cache.store(key, *pair) for pair in zip(folders, entries, strict=True)]
    found = cache.find(key)
    assert found is not None
    assert found.cached
    for made in (*stored, found):
        assert text_of(made) == "same"
    assert len(list((cache.root / "items").glob("*/*"))) == 1


def test_many_threads_make_one_sound_entry(cache: Cache, source: Item) -> None:
    start, texts = threading.Barrier(6), []

    def meet(inputs: Inputs, options: Suffix, workspace: Workspace) -> Facts:
        start.wait(timeout=60)
        return append(inputs, options, workspace)

    def work() -> None:
        made = Pipeline(cache, Silent(), quiet=False).run(chain(source, "b", of=stage(meet)))["n0"]
        texts.append(text_of(made))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["ab"] * 6
    assert len(list((cache.root / "items").glob("*/*"))) == 1


KILLED = """
import os, sys
from pathlib import Path
from deploykit.export.cache import Cache
folder = Cache(Path(sys.argv[1])).workspace()
(folder / "files/t.txt").write_bytes(b"half")
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_is_no_entry_and_its_rubbish_goes(tmp_path: Path, source: Item) -> None:
    cache = Cache(tmp_path / "cache")
    assert subprocess.run([sys.executable, "-c", KILLED, str(cache.root)]).returncode == -9
    (rubbish,) = (cache.root / "tmp").iterdir()
    results, log = run(cache, chain(source, "b"))
    assert (text_of(results["n0"]), log.ran) == ("ab", ["n0"])
    os.utime(rubbish, (1, 1))
    run(cache, chain(source, "c"))
    assert list((cache.root / "tmp").iterdir()) == []


def test_a_name_that_is_no_file_of_an_item_is_a_bug(source: Item) -> None:
    with pytest.raises(InternalError, match=r"no file 'x'; it has \['t\.txt'\]"):
        source.path("x")


def test_a_digest_knows_kind_names_and_contents_but_no_folder_and_no_facts(tmp_path: Path, source: Item) -> None:
    record = source.files[0]
    others = [
        dataclasses.replace(source, kind="image"),
        dataclasses.replace(source, files=(dataclasses.replace(record, path="u.txt"),)),
        dataclasses.replace(source, files=(dataclasses.replace(record, sha256="0" * 64),)),
        dataclasses.replace(source, files=()),
    ]
    assert len({source.digest, *(item.digest for item in others)}) == 5
    assert dataclasses.replace(source, root=tmp_path, facts={"more": 1}).digest == source.digest


def test_the_record_tells_what_was_done(cache: Cache, source: Item) -> None:
    plan = chain(source, "b", "c")
    results, _ = run(cache, plan)
    digests: Mapping[str, str] = {"source": source.digest, **{name: made.item.digest for name, made in results.items()}}
    found = record_of(plan.nodes[1], results["n1"], digests)
    assert (found.node, found.stage, found.version, found.options) == ("n1", "append", 1, {"text": "c"})
    assert (found.inputs, found.output) == ({"text": digests["n0"]}, digests["n1"])
    assert (found.facts, found.libraries, found.cached) == ({"length": 3}, {}, False)


@pytest.mark.parametrize("where", ["env", "home"])
def test_the_default_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path) if where == "env" else "")
    assert (Cache.default().root == tmp_path) == (where == "env")
    assert Cache.default().root.is_absolute()


def test_an_unwritable_cache_is_a_resource_error(tmp_path: Path, source: Item) -> None:
    (tmp_path / "cache").write_text("a file is in the way", encoding="utf-8")
    with pytest.raises(DeploykitError) as caught:
        run(Cache(tmp_path / "cache"), chain(source, "b"))
    assert isinstance(caught.value, ResourceError)
