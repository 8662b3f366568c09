import subprocess
import sys
from pathlib import Path

import pytest
from support.packs import contents, pack
from support.runs import Run, assert_one_message, environment
from support.shards import tiny_tokenizer, write_caption_shard

from openqwen2vl.formats.errors import UserError
from openqwen2vl.packing.locks import only_writer

# Fills a folder as another run would, says so, and waits to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from openqwen2vl.packing.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_folder_that_another_process_fills_is_refused_until_that_one_dies(
    call: Run, tmp_path: Path
) -> None:
    raw, out, once = (tmp_path / name for name in ("raw", "out", "once"))
    write_caption_shard(raw / "00000.tar", 5)
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    pack(raw, once, tokenizer)
    words = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        settings = (f"input={raw}", f"out={out}", f"tokenizer={tmp_path / 'tokenizer'}")
        told = call("pack", *settings, "workers=1")
        assert_one_message(told, f"another process is writing into {out}", "wait for it")
        assert [path.name for path in out.iterdir()] == [".lock"]
        other.kill()
    pack(raw, out, tokenizer)
    # Nothing of the lock is left, the one that was killed while it had it included.
    assert contents(out) == contents(once)


def test_a_lock_is_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path / "a"), only_writer(tmp_path / "b"):
        raise KeyError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_one_process_does_not_get_it_twice_either(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path),
        pytest.raises(UserError, match="another process"),
        only_writer(tmp_path),
    ):
        pass


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"nothing can be written into .*; give another out"),
        only_writer(tmp_path / "file" / "out"),
    ):
        pass
