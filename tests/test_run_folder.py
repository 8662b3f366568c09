import errno
import fcntl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.training.run_folder import RunFolder

# Takes the lock as another run would, says so, and waits to be killed.
HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "a+b")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


def with_checkpoints(root: Path, *names: str) -> RunFolder:
    folder = RunFolder(root)
    folder.checkpoints.mkdir(parents=True)
    for name in names:
        (folder.checkpoints / name).touch()
    return folder


def test_a_folder_that_another_process_writes_to_is_refused_until_that_one_dies(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    words = [sys.executable, "-c", HOLDER, str(folder.path / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=r"another process is writing to .*run; wait for it"):
            folder.lock()
        other.kill()
    folder.lock()


def test_one_that_only_looks_for_a_moment_keeps_no_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looker = (tmp_path / ".lock").open("a+b")
    fcntl.flock(looker, fcntl.LOCK_SH)  # as `RunFolder.written` does
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: looker.close())
    monkeypatch.setattr("openqwen2vl.training.run_folder.time", clock)
    run = RunFolder(tmp_path)
    run.lock()
    assert looker.closed
    assert RunFolder(tmp_path).written()


def test_a_folder_in_which_nothing_was_written_is_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.lock()
    run.forget()
    assert not run.path.exists()
    run.lock()
    (run.path / "config.json").touch()
    run.forget()
    assert RunFolder(run.path).written()


def test_a_lock_whose_owner_forgot_it_in_that_moment_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (RunFolder(tmp_path / "run") for _ in range(3))
    first.lock()
    # The second opens the file, waits, and gets the lock as the first removes the file.
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: first.forget())
    monkeypatch.setattr("openqwen2vl.training.run_folder.time", clock)
    second.lock()
    monkeypatch.undo()
    with pytest.raises(UserError, match="another process"):
        third.lock()


def test_a_file_system_without_locks_is_told_by_a_run_and_says_nothing_to_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert RunFolder(tmp_path).written() is False
    with pytest.raises(UserError, match=r"cannot be locked .*No locks available"):
        RunFolder(tmp_path).lock()


def test_the_lock_makes_the_folder_and_is_given_back_with_its_owner(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "runs" / "a")
    first.lock()
    with pytest.raises(UserError, match="another process"):
        RunFolder(first.path).lock()
    del first
    RunFolder(tmp_path / "runs" / "a").lock()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_an_empty_folder_starts_afresh(tmp_path: Path, resume: str | None) -> None:
    assert RunFolder(tmp_path / "run").checkpoint(resume) is None
    assert RunFolder(tmp_path).checkpoint(resume) is None


@pytest.mark.parametrize("trace", ["checkpoints/step_00000002.ckpt", "metrics.csv"])
def test_a_folder_that_holds_a_run_is_not_started_again_by_accident(
    tmp_path: Path, trace: str
) -> None:
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).touch()
    with pytest.raises(UserError, match=r"resume=last.*name=OTHER"):
        RunFolder(tmp_path).checkpoint(None)


@pytest.mark.parametrize("resume", ["auto", "last"])
def test_the_newest_complete_checkpoint_is_found(tmp_path: Path, resume: str) -> None:
    folder = with_checkpoints(
        tmp_path,
        "step_00000009.ckpt",
        "step_00000010.ckpt",
        ".step_00000011.ckpt.tmp",
        ".step_00000012.ckpt.old",
        "step_13.ckpt",
        "step_00000014.ckpt.part",
    )
    assert folder.checkpoint(resume) == folder.checkpoints / "step_00000010.ckpt"


def test_last_without_a_checkpoint_names_auto(tmp_path: Path) -> None:
    folder = with_checkpoints(tmp_path, ".step_00000001.ckpt.tmp")
    with pytest.raises(CheckpointError, match="resume=auto starts afresh"):
        folder.checkpoint("last")


def test_a_path_is_taken_as_it_is_and_must_exist(tmp_path: Path) -> None:
    folder = with_checkpoints(tmp_path / "run", "step_00000003.ckpt")
    elsewhere = tmp_path / "other.ckpt"
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        folder.checkpoint(str(elsewhere))
    elsewhere.touch()
    assert folder.checkpoint(str(elsewhere)) == elsewhere


def test_facts_are_written_whole_and_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.read_json("run.json") == {}
    folder.write_json("run.json", {"state": "running", "step": 1})
    folder.write_json("run.json", {"state": "finished", "step": 2})
    assert folder.read_json("run.json") == {"state": "finished", "step": 2}
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
