import errno
import os
import traceback
from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import atomic_file, tell_full_disk

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failure_of_a_rank() -> CheckpointException:
    try:
        raise FULL
    except OSError as error:
        frames = traceback.extract_tb(error.__traceback__)
        return CheckpointException("write", {1: (error, frames)})


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        Exception("No space left on device (os error 28)"),
        failure_of_a_rank(),
    ],
)
def test_a_full_disk_is_told_in_one_sentence_however_it_shows(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"no space left while writing some/file; free some"),
        tell_full_disk(Path("some/file")),
    ):
        raise error


def test_a_full_disk_behind_another_error_is_told_too() -> None:
    outer = RuntimeError("the archive could not be closed")
    outer.__cause__ = FULL
    with pytest.raises(UserError, match="no space left"), tell_full_disk(Path("file")):
        raise outer


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "no"), ValueError("no"), KeyboardInterrupt()]
)
def test_other_errors_come_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, tell_full_disk(Path("file")):
        raise error
    assert caught.value is error


def test_a_file_that_could_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="half"), atomic_file(path):
        raise ValueError("half")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_place_where_nothing_can_be_written_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "below"
    with (
        pytest.raises(UserError, match=r"below cannot be written \(.+\); choose"),
        atomic_file(path),
    ):
        pass
