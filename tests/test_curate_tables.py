"""`curate` of pairs that come in parquet: what pack reads of the new shards is what it would read
of the tables, whatever the columns are."""

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
from support.curated import STEPS, tree
from support.kept import files, write_kept
from support.runs import assert_one_message
from support.selections import write_table
from support.shards import caption, picture

from openqwen2vl.curation.resharding import locate
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.curation.resharding.rewrite import write_shard
from openqwen2vl.curation.resharding.unpack import unpack
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.shards import shards_of
from openqwen2vl.formats.cells import CellReader, is_cell
from openqwen2vl.formats.corpora import open_corpus, read_shard
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.rejects import Reject

FILES, ROWS = 3, 7


def ground_truth(texts):
    return [json.dumps({"gt_parse": {"text_sequence": text}}) for text in texts]


def synthdog(images, texts):
    return {"image": [{"bytes": i, "path": None} for i in images], "ground_truth": texts}


LAYOUTS = {
    # column of texts, and of images: as SynthDoG and as other tables on the hub have them
    "pages": lambda images, texts: synthdog(images, ground_truth(texts)),
    "captions": lambda images, texts: {"caption": texts, "jpg": images},
    "lists": lambda images, texts: {"text": texts, "images": [[i] for i in images]},
}


def write_tables(folder, layout, **columns):
    """Write files of rows in small row groups; the last row of each has the first one's image."""
    rng = random.Random(0)
    for number in range(FILES):
        kinds = [rng.choice(("JPEG", "PNG", "WEBP")) for _ in range(ROWS - 1)]
        images = [picture(rng, format=kind) for kind in kinds]
        texts = [f" {caption(rng)}\nÄ \u2028{row} \n" for row in range(ROWS)]
        columns_here = LAYOUTS[layout]([*images, images[0]], texts)
        more = {name: values[number] for name, values in columns.items()}
        write_table(folder / f"train-{number:05d}-of-00003.parquet", columns_here | more)
    return folder


def read(folder):
    """Give by uid what pack reads, each image's bytes with its text."""
    found, cells = {}, CellReader()
    for shard in open_corpus(folder):
        for item in read_shard(shard, "pages"):
            assert not isinstance(item, Reject), item
            found[item.uid] = (item.turns, [bytes_of(image, cells) for image in item.images])
    return found


def bytes_of(image, cells):
    if is_cell(image):
        return cells.read(image)
    with open(image.path, "rb") as file:
        file.seek(image.offset)
        return file.read(image.size)


def curate(call, raw, out, *more):
    code, stdout, stderr = call(
        "curate",
        f"input={{pages: {raw}}}",
        f"out={out}",
        "scorers.text.language=false",
        "duplicates.by=[image]",
        "samples_per_shard=4",
        "workers=1",
        "json=true",
        *more,
    )
    assert code == 0, stderr
    return json.loads(stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_of_tables_is_read_as_it_was(tmp_path, call, layout):
    raw, out = write_tables(tmp_path / "data", layout), tmp_path / "out"
    figures = curate(call, raw, out, "+selection.sources.pages={input: pages, keep: 'width > 9'}")
    assert figures["funnel"]["pages"]["delivered"] == {"samples": FILES * ROWS}
    assert figures["funnel"]["pages"]["deduplicate"] == {"duplicate_image": FILES}
    kept = pl.read_parquet(out / "kept" / "pages.parquet")["uid"].to_list()
    assert len(kept) == FILES * (ROWS - 1)
    given, found = read(raw), read(out / "shards" / "pages")
    # No row names a uid: it is then told from those of other sources.
    assert found == {f"pages/{uid}": given[uid] for uid in kept}
    assert not (out / "shards" / "pages" / ".work").exists()


def test_workers_and_starting_again_change_no_byte_of_shards_from_tables(tmp_path, call):
    raw = write_tables(tmp_path / "data", "pages")
    curate(call, raw, tmp_path / "one", "window=2")
    expected = tree(tmp_path / "one")
    assert {name.split("/")[0] for name in expected} == set(STEPS)
    for step in ("score", "select", "deduplicate", "reshard"):
        curate(call, raw, tmp_path / "two", "window=2", f"only={step}", "workers=2")
    assert tree(tmp_path / "two") == expected
    # A shard that went is made again from its tables, the others stay.
    (lost, *_) = sorted((tmp_path / "two" / "shards" / "pages").glob("*.tar"))
    lost.unlink()
    curate(call, raw, tmp_path / "two", "window=2")
    assert tree(tmp_path / "two") == expected


def test_what_was_unpacked_of_tables_is_not_unpacked_again(tmp_path, monkeypatch):
    raw = write_tables(tmp_path / "raw", "pages")
    samples = [sample for path in shards_of(raw) for sample in read_samples(path, "pages")]
    kept = write_kept(tmp_path / "kept.parquet", samples[3:])

    def asked(out):
        return ReshardRequest(
            kept=kept, input=raw, out=tmp_path / out, source="pages", name="pages", window=1
        )

    def stopped(function, jobs):
        if function is write_shard:
            raise RuntimeError("killed")
        return map(function, jobs)

    with pytest.raises(RuntimeError, match="killed"):
        reshard(asked("stopped"), stopped)
    made = []
    monkeypatch.setattr(locate, "unpack", lambda *told: made.append(told) or unpack(*told))
    reshard(asked("stopped"))
    assert made == []
    reshard(asked("whole"))
    assert len(made) == FILES
    with pytest.raises(RuntimeError, match="killed"):
        reshard(asked("cleared"), stopped)
    (cleared, *_) = (tmp_path / "cleared" / ".work" / "located").glob("*.tar")
    cleared.unlink()
    reshard(asked("cleared"))
    assert len(made) == 2 * FILES + 1
    assert files(tmp_path / "cleared") == files(tmp_path / "whole")
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_threads_may_read_the_images_of_a_table_at_once(tmp_path):
    rng = random.Random(2)
    images = [picture(rng) for _ in range(60)]
    table = {"caption": ["a cat"] * len(images), "jpg": images}
    write_table(tmp_path / "a.parquet", table, row_group_size=3)
    samples = [*read_samples(tmp_path / "a.parquet", "s")] * 5
    rng.shuffle(samples)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(Sample.read, samples))
    assert found == [images[int(sample.key)] for sample in samples]


def test_own_uids_and_columns_of_tables_are_there_to_select_by(tmp_path, call):
    uids = [[f"{number}-{row}" for row in range(ROWS)] for number in range(FILES)]
    clip = [[row / 10 for row in range(ROWS)]] * FILES
    raw = write_tables(tmp_path / "data", "captions", uid=uids, clip=clip)
    rule = "+selection.sources.it={input: pages, keep: 'clip >= 0.3 and words >= 3'}"
    curate(call, raw, tmp_path / "out", rule, "duplicates.by=[uid]")
    given, found = read(raw), read(tmp_path / "out" / "shards" / "it")
    assert found == {uid: given[uid] for few in uids for uid in few[3:]}
    (first, *_) = sorted((tmp_path / "out" / "shards" / "it").glob("*.tar"))
    (sample, *_) = read_samples(first, "it")
    assert sample.fields["scores"]["clip"] >= 0.3
    assert sample.fields["origin"]["source"] == "pages"


def test_faces_of_a_table_are_blurred(tmp_path, call):
    boxes = [[[[0.1, 0.1, 0.9, 0.9]], *[[]] * (ROWS - 1)]] * FILES
    raw = write_tables(tmp_path / "data", "captions", face_bboxes=boxes)
    figures = curate(call, raw, tmp_path / "out", "blur=true", "duplicates=null")
    assert figures["reshard"]["pages"]["blurred"]["faces"] == FILES
    given, found = read(raw), read(tmp_path / "out" / "shards" / "pages")
    changed = [uid for uid in given if found[f"pages/{uid}"] != given[uid]]
    assert [uid.rpartition("/")[2] for uid in changed] == ["000000000"] * FILES


def test_what_is_no_pair_or_cannot_be_opened_is_told_and_the_rest_goes_on(tmp_path, call):
    raw = write_tables(tmp_path / "data", "captions")
    image = picture(random.Random(1))
    write_table(raw / "a.parquet", {"caption": ["", "a cat", None], "jpg": [image, None, image]})
    (raw / "0.parquet").write_bytes(b"PAR1 and no more")
    figures = curate(call, raw, tmp_path / "out", "duplicates=null")
    reasons = Counter(figures["funnel"]["pages"]["unreadable"])
    assert reasons == dict(empty_caption=1, missing_image=1, missing_text=1, truncated_shard=1)
    assert len(read(tmp_path / "out" / "shards" / "pages")) == FILES * ROWS


def test_an_image_of_another_format_keeps_its_bytes_under_an_ending_that_is_read(tmp_path):
    data = picture(random.Random(1), format="GIF")
    write_table(tmp_path / "a.parquet", {"caption": ["a cat"], "jpg": [data]})
    unpack(tmp_path / "a.parquet", {"000000000"}, tmp_path / "a.tar")
    (sample,) = read_samples(tmp_path / "a.tar", "s")
    assert (sample.read(), sample.caption) == (data, "a cat")


def test_a_table_that_changed_since_it_was_scored_is_an_error(tmp_path, call):
    raw, out = write_tables(tmp_path / "data", "captions"), tmp_path / "out"
    curate(call, raw, out, "only=score")
    path = raw / "train-00001-of-00003.parquet"
    write_table(path, pl.read_parquet(path)[1:].to_dict(as_series=False))
    told = call("curate", f"input={{pages: {raw}}}", f"out={out}", "only=select", "workers=1")
    assert_one_message(told, "score it again")


def test_tables_without_images_are_no_shards(tmp_path):
    write_table(tmp_path / "a.parquet", {"uid": ["1"], "text": ["a"], "image": ["a path"]})
    assert shards_of(tmp_path) == []
    write_table(tmp_path / "b" / "a.parquet", {"text": ["a"], "image": [b"bytes"]})
    (tmp_path / "b" / "b.tar").write_bytes(b"")
    assert [path.name for path in shards_of(tmp_path / "b")] == ["b.tar"]


def test_a_table_that_went_away_is_told(tmp_path):
    write_table(tmp_path / "a.parquet", {"caption": ["a cat"], "jpg": [picture(random.Random(1))]})
    (sample,) = read_samples(tmp_path / "a.parquet", "s")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ShardError, match="went away"):
        sample.read()
