"""Benchmark files in three forms, and what is said of those that are not right."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.mini_benchmarks import MINI, write_mini

from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS, benchmark
from openqwen2vl.evaluation.locate import download_command
from openqwen2vl.formats.errors import ConfigError, ImageError, ShardError

PLAIN = {name: one for name, one in BENCHMARKS.items() if not one.shots}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for data in MINI:
        write_mini(folder, data)
    return folder


@pytest.mark.parametrize("name", PLAIN)
def test_a_mini_benchmark_is_read_whole(root, name):
    reading = PLAIN[name].read(root)
    ids = [question.id for question in reading.questions]
    assert 12 <= len(ids) == len(set(ids)) <= 20
    assert len(reading.file_hash) == 64
    assert [note for note in reading.notes if f"{len(ids)} questions here" in note]
    for question in reading.questions:
        assert question.fields == json.loads(json.dumps(dict(question.fields)))
        for image in question.images:
            Image.open(io.BytesIO(image.read())).load()


@pytest.mark.parametrize("data", MINI)
@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_the_form_of_a_file_changes_nothing(root, tmp_path, data, form):
    write_mini(tmp_path, data, form)
    here, there = (PLAIN[data].read(folder).questions for folder in (tmp_path, root))
    assert [(q.id, q.cluster) for q in here] == [(q.id, q.cluster) for q in there]
    for one, other in zip(here, there, strict=True):
        assert one.fields == other.fields
        assert [i.read() for i in one.images] == [i.read() for i in other.images]


def test_the_video_questions_of_seedbench_are_left_out(root):
    assert len(PLAIN["seedbench"].read(root).questions) == 12


def test_copies_share_a_cluster(root):
    mmbench = PLAIN["mmbench"].read(root).questions
    assert len(mmbench) == 18
    assert {q.cluster for q in mmbench} == {"100", "101", "102", "103", "104"}
    assert len({q.cluster for q in PLAIN["pope"].read(root).questions}) == 6


def test_the_files_may_lie_in_several_places(tmp_path):
    written = write_mini(tmp_path / "hub", "pope")
    for place in (tmp_path / "hub", tmp_path / "hub" / "pope", written):
        assert len(PLAIN["pope"].read(place).questions) == 18
    written.rename(tmp_path / "pope.parquet")
    assert len(PLAIN["pope"].read(tmp_path).questions) == 18


def test_the_evaluated_split_and_subset_are_chosen(tmp_path):
    own = write_mini(tmp_path, "mmbench")
    english, chinese = (tmp_path / "mmbench" / name for name in ("en", "cn"))
    english.mkdir()
    chinese.mkdir()
    (chinese / own.name).write_bytes(own.read_bytes())
    (english / "test-00000-of-00001.parquet").write_bytes(b"no parquet")
    own.rename(english / own.name)
    assert len(PLAIN["mmbench"].read(tmp_path).questions) == 18
    (english / own.name).unlink()
    with pytest.raises(
        ShardError, match=r"holds test of mmbench; expected files that begin with dev"
    ):
        PLAIN["mmbench"].read(tmp_path)


def test_the_hash_is_of_the_bytes(tmp_path):
    first = PLAIN["pope"].read(write_mini(tmp_path / "a", "pope"))
    again = PLAIN["pope"].read(write_mini(tmp_path / "b", "pope"))
    other = PLAIN["pope"].read(write_mini(tmp_path / "c", "pope", "jsonl"))
    assert first.file_hash == again.file_hash != other.file_hash


def changed(tmp_path, data, change):
    """Rewrite a mini benchmark's table."""
    path = write_mini(tmp_path, data)
    pq.write_table(change(pq.read_table(path)), path)
    return path


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = changed(tmp_path, "pope", lambda table: table.drop_columns(["answer", "question_id"]))
    with pytest.raises(
        ShardError, match=r"lacks question_id or index, answer; it has the columns id, question"
    ):
        PLAIN["pope"].read(path)


def test_a_missing_column_of_pictures_is_told(tmp_path):
    path = changed(tmp_path, "mmbench", lambda table: table.drop_columns(["image"]))
    with pytest.raises(ShardError, match=r"lacks pictures in image; it has the columns index"):
        PLAIN["mmbench"].read(path)


def test_an_id_that_comes_twice_is_told(tmp_path):
    path = changed(tmp_path, "mmstar", lambda table: pa.concat_tables([table, table.slice(0, 2)]))
    with pytest.raises(ShardError, match=r"2 ids of mmstar come twice .* the first is 0"):
        PLAIN["mmstar"].read(path)


def test_an_answer_that_is_no_option_is_told(tmp_path):
    def spoil(table):
        place = table.column_names.index("answer")
        return table.set_column(place, "answer", pa.array(["Z"] * table.num_rows))

    with pytest.raises(ShardError, match=r"row 0: the answer is 'Z'; the options are A, B, C, D"):
        PLAIN["mmbench"].read(changed(tmp_path, "mmbench", spoil))


def test_a_picture_that_is_none_is_left_to_whoever_needs_it(tmp_path):
    def spoil(table):
        cells = table.column("image").to_pylist()
        cells[0], cells[1] = {"bytes": b"no picture", "path": None}, None
        place = table.column_names.index("image")
        return table.set_column(place, "image", pa.array(cells, table.schema.field("image").type))

    questions = PLAIN["pope"].read(changed(tmp_path, "pope", spoil)).questions
    assert questions[0].images[0].read() == b"no picture"
    with pytest.raises(ImageError, match=r"picture 0 in image of row 1"):
        questions[1].images[0].read()


def test_files_that_cannot_be_read_are_told(tmp_path):
    path = tmp_path / "pope.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ShardError, match=r"cannot be read .*; fetch it again"):
        PLAIN["pope"].read(tmp_path)
    path.rename(tmp_path / "pope.jsonl")
    with pytest.raises(ShardError, match=r"pope.jsonl, line 1 is no JSON"):
        PLAIN["pope"].read(tmp_path)
    (tmp_path / "pope.jsonl").unlink()
    for empty in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ShardError, match=r"no files of mmbench: neither"):
            PLAIN["mmbench"].read(empty)


def test_another_benchmarks_files_are_not_taken(tmp_path):
    write_mini(tmp_path, "pope")
    with pytest.raises(ShardError, match=r"no files of mmbench: neither"):
        PLAIN["mmbench"].read(tmp_path)


def test_what_lies_right_in_the_root_is_asked_under_its_own_name_alone(tmp_path):
    write_mini(tmp_path / "made", "mmbench", "tsv").rename(tmp_path / "MMBench_DEV_EN.tsv")
    assert PLAIN["mmbench"].read(tmp_path).questions
    for name in ("mmstar", "ai2d", "seedbench"):
        with pytest.raises(ShardError, match=f"no files of {name}: neither"):
            PLAIN[name].read(tmp_path)


def test_a_jsonl_whose_pictures_are_gone_is_told(tmp_path):
    path = write_mini(tmp_path, "mantis", "jsonl")
    (path.parent / "3-images-1.jpg").unlink()
    with pytest.raises(ShardError, match=r"line 4: there is no picture .*3-images-1.jpg"):
        PLAIN["mantis"].read(tmp_path)


def test_a_row_without_a_picture_costs_itself_alone(tmp_path):
    path = write_mini(tmp_path, "pope", "jsonl")
    first, *rest = path.read_text().splitlines()
    record = {**json.loads(first), "image": None}
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n")
    questions = PLAIN["pope"].read(tmp_path).questions
    with pytest.raises(ImageError, match=r"line 1 has no picture"):
        questions[0].images[0].read()
    assert questions[1].images[0].read()


def test_seedbench_may_name_its_options_as_vlmevalkit_does(tmp_path):
    names = {f"choice_{letter}": letter.upper() for letter in "abcd"} | {"question_id": "index"}
    before = PLAIN["seedbench"].read(write_mini(tmp_path, "seedbench")).questions
    path = changed(
        tmp_path,
        "seedbench",
        lambda table: table.rename_columns([names.get(n, n) for n in table.column_names]),
    )
    after = PLAIN["seedbench"].read(path).questions
    assert [(q.id, q.fields) for q in after] == [(q.id, q.fields) for q in before]


def test_two_forms_of_one_benchmark_are_told(tmp_path):
    write_mini(tmp_path, "pope")
    write_mini(tmp_path, "pope", "tsv")
    with pytest.raises(ShardError, match=r"as .parquet and as .tsv; leave one"):
        PLAIN["pope"].read(tmp_path)


def test_a_tsv_may_share_pictures_between_rows(tmp_path):
    path = write_mini(tmp_path, "mmbench", "tsv")
    head, *rows = path.read_text().splitlines()
    cells = [row.split("\t") for row in rows]
    place = head.split("\t").index("image")
    before = PLAIN["mmbench"].read(tmp_path).questions[1].images[0].read()
    cells[1][place] = cells[0][0]  # the index of the row that has the picture
    path.write_text("\n".join([head, *("\t".join(row) for row in cells)]) + "\n")
    assert PLAIN["mmbench"].read(tmp_path).questions[1].images[0].read() == before
    cells[1].pop()
    path.write_text("\n".join([head, *("\t".join(row) for row in cells)]) + "\n")
    with pytest.raises(ShardError, match=r"cells; the first row names 13"):
        PLAIN["mmbench"].read(tmp_path)


def test_an_unknown_benchmark_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match=r"benchmark is 'mmbnech'; there are mmmu, mmbench"):
        benchmark("mmbnech")


def test_the_command_that_fetches_names_the_split_and_the_place(tmp_path):
    schema = BENCHMARKS["mmbench"].schema
    assert download_command(schema, tmp_path) == (
        "hf download lmms-lab-encoder/MMBench --repo-type dataset --include 'en/dev*' "
        f"--local-dir {tmp_path}/mmbench"
    )
    assert "'*train*'" in download_command(BENCHMARKS["textvqa_8shot"].schema, tmp_path, demos=True)


@pytest.mark.parametrize("data", ["vqav2", "okvqa", "vizwiz"])
def test_where_the_hub_has_no_train_split_another_place_is_named(tmp_path, data):
    command, elsewhere = download_command(
        BENCHMARKS[f"{data}_8shot"].schema, tmp_path, demos=True
    ).splitlines()
    assert command == download_command(BENCHMARKS[data].schema, tmp_path)
    assert elsewhere.startswith("# lmms-lab-encoder/")
    assert f"{tmp_path}/{data}/train.jsonl" in elsewhere


def test_a_split_of_another_name_is_not_taken_beside_the_evaluated_one(tmp_path):
    own = write_mini(tmp_path, "okvqa")
    for other in ("train2014", "minival"):
        (own.parent / f"{other}-00000-of-00001.parquet").write_bytes(b"no parquet")
    assert len(PLAIN["okvqa"].read(tmp_path).questions) == 12


def test_where_the_data_root_lies_says_nothing_of_the_subset(tmp_path):
    root = tmp_path / "en"
    own = write_mini(root, "mmbench")
    for subset in ("en", "cn"):
        (own.parent / subset).mkdir()
        (own.parent / subset / own.name).write_bytes(own.read_bytes())
    own.unlink()
    assert len(PLAIN["mmbench"].read(root).questions) == 18


def test_the_pictures_of_gqa_may_lie_in_files_of_their_own(tmp_path):
    table = pq.read_table(write_mini(tmp_path / "whole", "gqa"))
    whole = PLAIN["gqa"].read(tmp_path / "whole").questions
    names = pa.array([f"p{number}" for number in range(table.num_rows)])
    folders = [tmp_path / "gqa" / f"testdev_balanced_{n}" for n in ("instructions", "images")]
    for folder in folders:
        folder.mkdir(parents=True)
    rows = table.drop_columns(["image"]).append_column("imageId", names)
    pictures = table.select(["image"]).append_column("id", names)
    pq.write_table(rows, folders[0] / "testdev-00000-of-00001.parquet")
    with pytest.raises(ShardError, match=r"testdev_balanced_images holds no pictures for"):
        PLAIN["gqa"].read(tmp_path)
    order = list(reversed(range(1, table.num_rows)))
    pq.write_table(pictures.take(order), folders[1] / "testdev-00000-of-00001.parquet")
    with pytest.raises(ShardError, match=r"row 0: there is no picture p0"):
        PLAIN["gqa"].read(tmp_path)
    pq.write_table(pictures.take([*order, 0]), folders[1] / "testdev-00000-of-00001.parquet")
    apart = PLAIN["gqa"].read(tmp_path).questions
    assert [q.fields for q in apart] == [q.fields for q in whole]
    assert [q.images[0].read() for q in apart] == [q.images[0].read() for q in whole]
    fetched = download_command(BENCHMARKS["gqa"].schema, tmp_path)
    assert "'testdev_balanced_instructions/testdev*'" in fetched
    assert "'testdev_balanced_images/testdev*'" in fetched
    assert "train" not in fetched
