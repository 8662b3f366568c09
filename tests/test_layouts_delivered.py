"""Corpora in the layouts in which docs/data.md says that they are delivered."""

import json
import random
import re
import tarfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from support.delivered import CAPTIONS, img2dataset, uid_list
from support.selections import uid, write_table
from support.shards import picture, write_tar

from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.selection.select import Rule, Selection, select
from openqwen2vl.curation.selection.sources import open_source
from openqwen2vl.curation.selection.uids import read_uids
from openqwen2vl.curation.shards import shards_of
from openqwen2vl.formats.cells import CellReader
from openqwen2vl.formats.corpora import open_corpus, read_shard, shard_path
from openqwen2vl.formats.documents import IMAGE, Document
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.rejects import Reject

RNG = random.Random(4)


def packed(path, image_root=None):
    """Read all that pack would read."""
    return [i for shard in open_corpus(path, image_root) for i in read_shard(shard, "s")]


def curated(folder):
    """Read all that curate would read; nothing of these layouts is a reject."""
    found = [i for path in shards_of(folder) for i in read_samples(path, "s")]
    assert all(isinstance(item, Sample) for item in found), found
    return found


def texts(items):
    return [item.turns[0].text for item in items]


def selected(out, keep, source, **lists):
    """Give the uids that an expression keeps of one source."""
    named = {name: str(path) for name, path in lists.items()}
    rule = Selection(sources={"it": Rule(input="it", keep=keep)}, lists=named)
    select(rule, {"it": source}, out)
    return pl.read_parquet(out / "selection" / "it.parquet")["uid"].to_list()


def test_img2dataset_writes_tars_tables_and_counts_side_by_side(tmp_path):
    folder = tmp_path / "ccs_webdataset"
    for number in range(2):
        img2dataset(folder, number)
    names = [shard_path(shard).name for shard in open_corpus(folder)]
    assert names == ["00000.tar", "00001.tar"]
    items = packed(folder)
    assert texts(items) == [CAPTIONS[0], CAPTIONS[2]] * 2
    # It gives no uid: the key is unique in its shard, the shard in its folder.
    assert [item.uid for item in items[:2]] == ["00000/000000000", "00000/000000002"]
    assert len({item.uid for item in items}) == 4
    samples = curated(folder)
    assert [s.caption for s in samples] == texts(items)
    assert samples[1].fields["original_width"] == 640
    assert decode_image(samples[0].read(), 32).shape == (32, 32, 3)


def test_tables_of_img2dataset_are_columns_of_the_samples_that_came(tmp_path):
    folder = tmp_path / "ccs_webdataset"
    for number in range(2):
        img2dataset(folder, number, pwatermark=[0.1, 0.2, 0.3])
    source = open_source("ccs", folder, tmp_path / "scores")
    kept = selected(tmp_path / "out", "pwatermark < 0.2 and original_width >= 640", source)
    assert kept == ["00000/000000000", "00001/000010000"]


def test_conceptual_captions_12m_has_no_uid_and_names_of_its_own(tmp_path):
    folder = tmp_path / "cc12m"
    for split in ("cc12m-train-0000", "cc12m-train-0001"):
        files = {}
        for i, caption in enumerate(CAPTIONS):
            files[f"{i:08d}.jpg"] = picture(RNG)
            files[f"{i:08d}.json"] = json.dumps({"width": 64, "height": 48}).encode()
            files[f"{i:08d}.txt"] = caption.encode()
        write_tar(folder / f"{split}.tar", files)
    items = packed(folder)
    assert texts(items) == [*CAPTIONS] * 2
    assert len({item.uid for item in items}) == 6
    assert [s.uid for s in curated(folder)] == [item.uid for item in items]


def test_datacomp_is_shards_of_eight_digits_beside_a_folder_of_metadata(tmp_path):
    shards, metadata = tmp_path / "shards" / "medium", tmp_path / "metadata" / "medium"
    boxes = [[[0.1, 0.2, 0.3, 0.4]], [], []]
    uids = [uid(n) for n in range(6)]
    for number in range(2):
        own = uids[3 * number : 3 * number + 3]
        img2dataset(shards, number, digits=8, uid=own, face_bboxes=boxes)
    scores = pa.array([0.9, 0.8, 0.1, 0.2, 0.9, 0.3], pa.float32())
    order = [5, 0, 3, 1, 4, 2]  # the metadata are not in the shards' order
    write_table(
        metadata / "0a4a1e10352ec4366858927c33873cdc.parquet",
        {
            "uid": [uids[i] for i in order],
            "url": [f"https://example.org/{i}" for i in order],
            "text": [CAPTIONS[i % 3] for i in order],
            "original_width": [640] * 6,
            "original_height": [480] * 6,
            "clip_b32_similarity_score": scores.take(pa.array(order)),
            "clip_l14_similarity_score": scores.take(pa.array(order)),
            "face_bboxes": [boxes[i % 3] for i in order],
            "sha256": [f"{i % 3:064x}" for i in order],
        },
    )
    dfn = uid_list(tmp_path / "datacomp_medium_dfn_20m_inds.npy", [uids[2], uids[3], uids[4]])
    came = [uids[i] for i in (0, 2, 3, 5)]
    assert [item.uid for item in packed(shards)] == came
    assert [sample.uid for sample in curated(shards)] == came
    assert curated(shards)[0].fields["face_bboxes"] == boxes[0]

    source = open_source("datacomp", shards, tmp_path / "scores", [metadata])
    # Both folders are called medium: medium are the tables beside the shards, metadata the others.
    keep = "uids('dfn') or clip_l14_similarity_score >= 0.3 and metadata.original_width == 640"
    assert selected(tmp_path / "out", keep, source, dfn=dfn) == came
    keep = "uids('dfn') and not clip_l14_similarity_score >= 0.2 and medium.status == 'success'"
    assert selected(tmp_path / "out", keep, source, dfn=dfn) == [uids[2]]
    alone = open_source("datacomp", metadata, tmp_path / "scores")
    assert selected(tmp_path / "out", "uids('dfn')", alone, dfn=dfn) == [
        uids[i] for i in order if i in (2, 3, 4)
    ]


def test_scores_of_the_released_scorer_stand_beside_the_shards(tmp_path):
    folder, uids = tmp_path / "shards", [uid(n) for n in range(4)]
    img2dataset(folder, 0, [f"picture {i}" for i in range(4)], digits=8, failed={}, uid=uids)
    # It writes all fields of the JSON, and what it generated as text.
    rows = pq.read_table(folder / "00000000.parquet").to_pylist()
    for row, score in zip(rows, ["85", "84\nbecause", "100", "no number"], strict=True):
        row["semantic_understanding_score"] = score
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000000_semantic_understanding.parquet")
    dfn = uid_list(tmp_path / "dfn.npy", [uids[2]])
    source = open_source("datacomp", folder, tmp_path / "scores")
    keep = "semantic_understanding >= 85"
    assert selected(tmp_path / "out", keep, source) == [uids[0], uids[2]]
    assert source.unparsed == {"semantic_understanding": 1}
    keep = "semantic_understanding >= 85 and not uids('dfn')"
    assert selected(tmp_path / "out", keep, source, dfn=dfn) == [uids[0]]
    assert [item.uid for item in packed(folder)] == uids


def test_laion_brings_a_similarity_with_each_sample(tmp_path):
    folder = tmp_path / "laion400m-data"
    more = {"NSFW": ["UNLIKELY", "UNSURE", None], "LICENSE": ["?", "cc-by-2.0", None]}
    img2dataset(folder, 0, failed={}, similarity=[0.31, 0.29, None], **more)
    items = packed(folder)
    assert texts(items) == [*CAPTIONS]
    assert [sample.fields["similarity"] for sample in curated(folder)] == [0.31, 0.29, None]
    source = open_source("laion", folder, tmp_path / "scores")
    kept = selected(tmp_path / "out", "similarity >= 0.3 and NSFW == 'UNLIKELY'", source)
    assert kept == [items[0].uid]


def test_synthdog_is_parquet_with_the_text_of_a_page_as_json(tmp_path):
    pages = ["once upon\na time", "there was"]
    truth = [json.dumps({"gt_parse": {"text_sequence": page}}) for page in pages]
    images = [{"bytes": picture(RNG), "path": None} for _ in pages]
    path = tmp_path / "data" / "train-00000-of-00084-26dbc51f3d0903b9.parquet"
    write_table(path, {"image": images, "ground_truth": truth})
    items = packed(tmp_path / "data")
    assert [item.turns[0].parts for item in items] == [(IMAGE, page) for page in pages]
    assert [CellReader().read(item.images[0]) for item in items] == [i["bytes"] for i in images]
    samples = curated(tmp_path / "data")
    assert [(s.uid, s.caption) for s in samples] == [(i.uid, i.turns[0].text) for i in items]
    assert [s.read() for s in samples] == [i["bytes"] for i in images]


def test_synthdog_in_tars_is_pairs_as_well(tmp_path):
    # As the official packing reads it, with captions; and as it is told in KEY.json alone.
    plain = {"00000000.jpg": picture(RNG), "00000000.txt": b"once upon"}
    truth = {"ground_truth": json.dumps({"gt_parse": {"text_sequence": "once upon"}})}
    told = {"00000000.jpg": picture(RNG), "00000000.json": json.dumps(truth).encode()}
    for number, files in enumerate((plain, told)):
        write_tar(tmp_path / "synthdog" / f"{number:08d}.tar", files)
    assert texts(packed(tmp_path / "synthdog")) == ["once upon"] * 2
    assert [s.caption for s in curated(tmp_path / "synthdog")] == ["once upon"] * 2


def conversation(mark="<image>\n", question="What is it?", answer="A book."):
    return [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]


def write_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(RNG, format="PNG" if name.endswith("png") else "JPEG"))


def test_llava_665k_is_a_json_list_and_the_folders_of_five_data_sets(tmp_path):
    root = tmp_path / "playground" / "data"
    there = [
        "coco/train2017/000000033471.jpg",
        "gqa/images/2354786.jpg",
        "textvqa/train_images/011e7e629fb9ae7b.jpg",
        "vg/VG_100K/2.jpg",
        "vg/VG_100K_2/1.jpg",
    ]
    write_images(root, *there)
    entries = [{"id": Path(n).stem, "image": n, "conversations": conversation()} for n in there]
    entries[1]["conversations"] = conversation("", "What is it?\n<image>") + conversation("")
    gone = "ocr_vqa/images/1437717772.jpg"  # not all could be fetched for years
    entries.append({"id": "1437717772", "image": gone, "conversations": conversation()})
    # ShareGPT's part: no image, and a key that nothing else has.
    entries.append({"id": "wgByO4Y_0", "model": "", "conversations": conversation("")})
    path = tmp_path / "llava_v1_5_mix665k.json"
    path.write_text(json.dumps(entries))
    items = packed(path, root)
    assert [len(item.images) for item in items if isinstance(item, Document)] == [1] * 5 + [0]
    assert [Path(item.images[0].path).name for item in items[:5]] == [Path(n).name for n in there]
    (lost,) = [item for item in items if isinstance(item, Reject)]
    assert (lost.key, lost.reason) == ("000000005", "missing_image")


def test_mammoth_vl_is_one_json_and_images_unpacked_from_compressed_tars(tmp_path):
    names = ["LLaVA-OneVision-Data/geo3k/1.png", "Cambrian-10M/ocr_vqa/2.jpg"]
    write_images(tmp_path / "made", *names)
    archives, root = tmp_path / "hub" / "single_image_data", tmp_path / "images"
    archives.mkdir(parents=True)
    for number, name in enumerate(names, 1):
        with tarfile.open(archives / f"shard_{number}.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "made" / name, name)
        with tarfile.open(archives / f"shard_{number}.tar.gz") as tar:
            tar.extractall(root, filter="data")
    entries = [
        {"id": n, "image": image, "conversations": conversation(answer=answer), "source": "mavis"}
        # Several conversations about one picture, under one id: none replaces another.
        for n, image, answer in (("1", names[0], "3."), ("1", names[0], "4."), (2, names[1], "5."))
    ]
    entries.append({"id": 3, "source": "magpie", "conversations": conversation("")})
    path = tmp_path / "hub" / "mammoth_si_10M.json"
    path.write_text(json.dumps(entries))
    items = packed(path, root)
    assert [item.turns[1].text for item in items] == ["3.", "4.", "5.", "A book."]
    assert [len(item.images) for item in items] == [1, 1, 1, 0]
    assert len({item.uid for item in items}) == 4


def test_the_papers_published_shards_are_those_of_datacomps_resharder(tmp_path):
    ccs = tmp_path / "ccs_webdataset"
    img2dataset(ccs, 0)
    assert texts(packed(ccs)) == [CAPTIONS[0], CAPTIONS[2]]
    folder = tmp_path / "datacomp_medium_mlm_filter_su_85_union_dfn_webdataset"
    uids = sorted(uid(n) for n in range(3))
    files = {}
    for i, (one, caption) in enumerate(zip(uids, CAPTIONS, strict=True)):
        # KEY is the uid and the number of its copy; the JSON is that of the pool, its key too.
        fields = {"uid": one, "caption": caption, "key": f"{i:012d}", "status": "success"}
        files[f"{one}-0.jpg"] = picture(RNG)
        files[f"{one}-0.json"] = json.dumps(fields).encode()
        files[f"{one}-0.txt"] = caption.encode()
    write_tar(folder / "00000000.tar", files)
    (folder / "00000000_stats.json").write_text('{"successes": 3}')
    (folder / "meta.json").write_text('{"output_count": 3}')
    listed = uid_list(folder / "sample_ids.npy", uids)
    items = packed(folder)
    assert ([item.uid for item in items], texts(items)) == (uids, [*CAPTIONS])
    assert [sample.uid for sample in curated(folder)] == uids
    assert read_uids(listed).contains(pl.Series(uids)).all()
    # DFN's part and the rest of the union come apart without any score.
    dfn = uid_list(tmp_path / "dfn.npy", uids[:2])
    source = open_source("datacomp", folder, tmp_path / "scores")
    assert selected(tmp_path / "out", "not uids('dfn')", source, dfn=dfn) == uids[2:]


def test_the_mixtures_that_the_docs_list_are_the_ones_shipped():
    root = Path(__file__).parents[1]
    row = re.compile(r"^\| `(ccs\w*)` \| (yes|-) \| (yes|-) \| (yes|-) \|", re.MULTILINE)
    rows = row.findall((root / "docs" / "data.md").read_text())
    assert len({tuple(told) for _, *told in rows}) == 8
    for name, *told in rows:
        mixture = yaml.safe_load((root / "conf" / "mixture" / f"{name}.yaml").read_text())
        switches = zip(("datacomp_dfn", "su85_minus_dfn", "laion"), told, strict=True)
        expected = {"ccs", *(source for source, there in switches if there == "yes")}
        assert set(mixture["sources"]) == expected, name
