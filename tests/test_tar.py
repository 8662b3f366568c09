import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.formats.tar import END, TruncatedTarError, header, members, padded

FILES = st.dictionaries(
    st.text("abc/é", min_size=1, max_size=150)
    .filter(lambda name: not name.startswith("/") and not name.endswith("/"))
    .map(lambda name: name + ".txt"),
    st.binary(max_size=1500),
    max_size=4,
)


def python_tar(files, format):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def read(data):
    return {m.name: data[m.offset : m.offset + m.size] for m in members(data)}


@settings(deadline=None)
@given(FILES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_tars_of_every_format_are_read_with_long_names(files, format):
    assert read(python_tar(files, format)) == files


@settings(deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=90), st.binary(max_size=1500)))
def test_what_we_write_python_reads(files):
    data = b"".join(
        header(name, len(content)) + content.ljust(padded(len(content)), b"\0")
        for name, content in files.items()
    )
    with tarfile.open(fileobj=io.BytesIO(data + END)) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar.getmembers()} == files
        assert all((m.mtime, m.uid, m.mode) == (0, 0, 0o644) for m in tar.getmembers())
    assert read(data + END) == files


@settings(deadline=None)
@given(st.data())
def test_a_cut_at_any_byte_leaves_the_whole_files_and_an_error(data):
    files = {"a.txt": b"x" * 700, "b.txt": b"y" * 20, "c.txt": b"z" * 1024}
    whole = python_tar(files, tarfile.GNU_FORMAT)
    ends = [512 + 700, 3 * 512 + 512 + 20, 5 * 512 + 512 + 1024]
    cut = data.draw(st.integers(0, ends[-1]))
    found = []

    def gather():
        for member in members(whole[:cut]):
            found.append(member.name)

    with pytest.raises(TruncatedTarError):
        gather()
    assert len(found) == sum(cut >= end for end in ends)


def test_a_damaged_header_is_told_with_its_place():
    data = bytearray(python_tar({"a.txt": b"x", "b.txt": b"y"}, tarfile.GNU_FORMAT))
    data[1024 + 5] ^= 1
    with pytest.raises(TruncatedTarError, match="damaged header at byte 1024"):
        list(members(bytes(data)))


def test_something_else_than_a_tar_is_told():
    with pytest.raises(TruncatedTarError, match="damaged header at byte 0"):
        list(members(b"\x1f\x8b" + b"gzip" * 300))


def test_a_name_too_long_for_a_plain_header_is_refused():
    with pytest.raises(ValueError, match="does not fit a plain tar header"):
        header("a" * 101, 1)
