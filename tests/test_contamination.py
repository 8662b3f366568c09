import base64
import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.selections import add_scores, opened

from openqwen2vl.curation.duplicates import contamination
from openqwen2vl.curation.duplicates.benchmark_pictures import BenchmarkPicture, benchmark_pictures
from openqwen2vl.curation.duplicates.contamination import EvaluationIndex, find_hits
from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules, deduplicate
from openqwen2vl.curation.duplicates.selected import Selected
from openqwen2vl.curation.scorer import identity
from openqwen2vl.curation.scorers.image import ImageScorer
from openqwen2vl.curation.selection.frames import TableError
from openqwen2vl.curation.selection.select import Selection, select
from openqwen2vl.formats.errors import ShardError

RULES = DuplicateRules(by=("uid",))
SCORER = ImageScorer()


def picture(seed: int, size: int = 256) -> Image.Image:
    """Smooth blots, each seed its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


PNG = [encoded(picture(seed, 64)) for seed in range(8)]


def measured(data: list[bytes | None]) -> pa.Table:
    """Hash pictures as the index does, and lay them out as a selection."""
    found = contamination._measured(
        "x", [BenchmarkPicture("f", i, d) for i, d in enumerate(data)], SCORER
    )
    names = [f"{i:04d}" for i in range(len(data))]
    return (
        pa.table({"shard": ["0"] * len(data), "key": names, "uid": names})
        .append_column("sha256", found["sha256"])
        .append_column("phash", found["phash"])
        .append_column("blank_share", found["blank_share"])
    )


def selection(path, data, drop=()) -> list[Selected]:
    pq.write_table(measured(data).drop_columns(list(drop)), path)
    return [Selected("train", path)]


def rows(path):
    return [(p.file, p.row, p.data) for p in benchmark_pictures(path)]


def test_a_folder_of_pictures_tars_and_tables_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.JPG").write_bytes(PNG[0])
    (tmp_path / "a.png").write_bytes(PNG[1])
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        for name, data in (("0.json", b"{}"), ("0.png", PNG[2]), ("1.webp", PNG[3])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert rows(tmp_path) == [
        ("a.png", 0, PNG[1]),
        ("c.tar", 0, PNG[2]),
        ("c.tar", 1, PNG[3]),
        ("empty.png", 0, None),
        ("sub/b.JPG", 0, PNG[0]),
    ]
    assert rows(tmp_path / "a.png") == [("a.png", 0, PNG[1])]


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": pa.array([PNG[0], None, PNG[1]], pa.binary())}, [(0, PNG[0]), (2, PNG[1])]),
        (
            {"images": pa.array([[PNG[0], PNG[1]], [], None], pa.list_(pa.binary()))},
            [(0, PNG[0]), (0, PNG[1])],
        ),
        (
            {
                "image_1": pa.array([{"bytes": PNG[0], "path": None}, None], STRUCT),
                "image_2": pa.array([{"bytes": PNG[1], "path": "x"}, {"path": "y"}], STRUCT),
                "question": pa.array(["?", "?"]),
            },
            [(0, PNG[0]), (0, PNG[1]), (1, None)],
        ),
        ({"decoded_image": pa.array([{"bytes": PNG[0]}], STRUCT)}, [(0, PNG[0])]),
        (
            {"image": pa.array([[{"bytes": PNG[0]}, {"path": None}]], pa.list_(STRUCT))},
            [(0, PNG[0]), (0, None)],
        ),
    ],
)
def test_the_columns_in_which_benchmarks_keep_pictures(tmp_path, columns, expected):
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    assert rows(tmp_path) == [("test.parquet", *pair) for pair in expected]


def test_a_tsv_has_base64_lists_of_it_and_references(tmp_path):
    codes = [base64.b64encode(data).decode() for data in PNG]
    lines = [
        "index\tquestion\timage",
        f'0\t"two\nlines"\t{codes[0]}',
        "1000000\tsame picture\t0",
        f"2\tlist\t\"['{codes[1]}', '{codes[2]}']\"",
        f"3\tspoilt\t{'!' * 80}",
    ]
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("\n".join(lines) + "\n")
    assert rows(tmp_path) == [
        ("MMBench_DEV_EN.tsv", row, data)
        for row, data in [(0, PNG[0]), (2, PNG[1]), (2, PNG[2]), (3, None)]
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tar", b"", "a.tar cannot be read"),
        ("a.tar", b"x" * 600, "a.tar cannot be read"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read"),
        ("a.tsv", b"index\tquestion\n0\t?\n", "columns index, question; expected base64 in image"),
        ("a.txt", b"", "holds no pictures; expected files ending in"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShardError, match=said):
        rows(tmp_path)
    with pytest.raises(ShardError, match="no evaluation file or folder"):
        rows(tmp_path / "nothing")


def test_a_table_without_pictures_names_its_columns(tmp_path):
    pq.write_table(pa.table({"image": ["path.jpg"], "question": ["?"]}), tmp_path / "a.parquet")
    with pytest.raises(ShardError, match="columns image, question; expected bytes in image"):
        rows(tmp_path)


@pytest.fixture
def index(tmp_path) -> EvaluationIndex:
    """Pictures 0 to 3 in one table, an unreadable one, and picture 4 as a file."""
    folder = tmp_path / "mmmu"
    folder.mkdir()
    cells = [*(encoded(picture(seed)) for seed in range(4)), b"no picture"]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), folder / "dev.parquet")
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "four.png").write_bytes(encoded(picture(4)))
    return EvaluationIndex.build({"mmmu": folder, "pope": tmp_path / "pope"}, SCORER)


TRAIN = [
    encoded(picture(9)),
    encoded(picture(2)),  # the very bytes
    encoded(picture(4).resize((180, 180)), "JPEG", quality=60),  # the same look
    None,
    encoded(picture(4)),
]


def test_samples_that_show_a_picture_are_found_by_bytes_and_by_look(tmp_path, index):
    hits = find_hits(selection(tmp_path / "train.parquet", TRAIN), index, RULES)
    assert hits.rows.tolist() == [1, 2, 4]
    assert hits.entries.tolist() == [2, 5, 5]
    assert hits.bits[[0, 2]].tolist() == [-1, -1]
    assert 0 <= hits.bits[1] <= RULES.distance
    zero = {"unreadable": 0, "shown": 0, "samples": 0}
    assert hits.counts(index) == {
        "mmmu/dev.parquet": zero | {"pictures": 5, "unreadable": 1, "shown": 1, "samples": 1},
        "pope/four.png": zero | {"pictures": 1, "shown": 1, "samples": 2},
    }


def test_one_hash_alone_is_enough_and_none_is_refused(tmp_path, index):
    path = tmp_path / "train.parquet"
    assert find_hits(selection(path, TRAIN, ["phash"]), index, RULES).rows.tolist() == [1, 4]
    found = find_hits(selection(path, TRAIN, ["sha256", "blank_share"]), index, RULES)
    assert found.rows.tolist() == [1, 2, 4]
    assert found.bits.min() == 0
    with pytest.raises(ShardError, match="no column phash: evaluations are found by it or sha256"):
        find_hits(selection(path, TRAIN, ["sha256", "phash"]), index, RULES)


def test_blank_pictures_are_found_by_their_bytes_alone(tmp_path):
    blank = [encoded(Image.new("RGB", (n, n), "white")) for n in (64, 80)]
    (tmp_path / "blank.png").write_bytes(blank[0])
    index = EvaluationIndex.build({"b": tmp_path}, SCORER)
    selected = selection(tmp_path / "train.parquet", blank)
    assert find_hits(selected, index, RULES).rows.tolist() == [0]
    seen = DuplicateRules(by=(), max_blank=1.0)
    assert find_hits(selected, index, seen).rows.tolist() == [0, 1]


def test_hits_are_dropped_or_only_told(tmp_path, index):
    selections = selection(tmp_path / "train.parquet", TRAIN)
    hits = find_hits(selections, index, RULES)
    hits.write(tmp_path / "hits.parquet", selections, index)
    told = pq.read_table(tmp_path / "hits.parquet").to_pylist()
    assert [(r["source"], r["key"], r["benchmark"], r["file"], r["row"]) for r in told] == [
        ("train", "0001", "mmmu", "dev.parquet", 2),
        ("train", "0002", "pope", "four.png", 0),
        ("train", "0004", "pope", "four.png", 0),
    ]
    out = tmp_path / "out"
    counts = deduplicate(selections, out, out, RULES, hits.removed(index))
    assert counts["train"].dropped == {"contaminated": 3}
    dropped = pq.read_table(out / "deduplicate-train.parquet").to_pylist()
    assert dropped[0]["detail"] == "mmmu/dev.parquet row 2 (the same bytes)"
    assert dropped[1]["detail"] == f"pope/four.png row 0 ({told[1]['bits']} of 64 bits differ)"
    assert deduplicate(selections, out, out, RULES)["train"].dropped == {}


def test_an_index_is_written_whole_and_read_again(tmp_path, index):
    path = tmp_path / "index.parquet"
    index.write(path)
    before = path.read_bytes()
    again = EvaluationIndex.read(path)
    assert again.table.equals(index.table)
    assert again.scorer == index.scorer == SCORER.fingerprint()
    again.write(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (ImageScorer(max_pixels=10**6), "max_pixels was 1000000 then, is 178000000 now"),
        (ImageScorer(phash=False), "columns was "),
    ],
)
def test_samples_that_were_measured_otherwise_are_refused(tmp_path, index, scorer, said):
    columns = {name: measured(TRAIN)[name] for name in ("sha256", "phash", "blank_share")}
    for turn, one in enumerate((scorer, SCORER)):
        add_scores(tmp_path, "image", "00000", columns, made_by=identity(one))
        select(Selection(sources={}), {"src": opened(tmp_path)}, tmp_path / "out")
        selections = [Selected("src", tmp_path / "out" / "selection" / "src.parquet")]
        if turn:
            assert find_hits(selections, index, RULES).rows.tolist() == [1, 2, 4]
            continue
        with pytest.raises(ShardError, match=said) as caught:
            find_hits(selections, index, RULES)
        assert "the samples of src" in str(caught.value)
        assert "overwrite=true" in str(caught.value)


def test_scores_of_two_settings_are_not_mixed(tmp_path):
    for shard, scorer in (("00000", ImageScorer(max_pixels=10**6)), ("00001", SCORER)):
        add_scores(tmp_path, "image", shard, {"phash": [1]}, made_by=identity(scorer))
    with pytest.raises(TableError, match="other settings for shard 00001 than for 00000"):
        select(Selection(sources={}), {"src": opened(tmp_path)}, tmp_path / "out")


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(ShardError, match="build it first"):
        EvaluationIndex.read(tmp_path / "index.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    with pytest.raises(ShardError, match="is no index of evaluations; build it again"):
        EvaluationIndex.read(tmp_path / "index.parquet")


def test_an_empty_index_finds_nothing(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    index = EvaluationIndex.build({"b": tmp_path}, SCORER)
    hits = find_hits(selection(tmp_path / "train.parquet", TRAIN), index, RULES)
    assert len(hits.rows) == 0
    assert hits.removed(index).details == []
