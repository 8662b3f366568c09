import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import picture

from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.tokens import IGNORE_INDEX, SpecialTokens
from openqwen2vl.packing.batch import collate, expand
from openqwen2vl.packing.reader import Pack

SPECIAL = SpecialTokens(bos=1, eos=2, pad=0, image=3, im_start=4, im_end=2)
SPEC = PackSpec(
    context=60,
    grid=2,
    tokenizer_hash="",
    vocab_size=100,
    template="qwen2_5",
    template_hash="",
    special=SPECIAL,
)
SIDE = 8
JPEG = picture(random.Random(0), (20, 16))

# A document: for each piece (is it an image?, is it a target?).
PIECES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9)
PACKS = st.lists(PIECES, min_size=1, max_size=6).filter(
    lambda documents: sum(4 if image else 1 for d in documents for image, _ in d) <= 60
)


def build(documents, images=None, first_id=10):
    """Make a pack whose text ids all differ, so that every label can be told apart."""
    ids, targets, entries = [], [], []
    for number, pieces in enumerate(documents):
        start = len(ids)
        for image, target in pieces:
            if target and not image:
                targets.append((len(ids), len(ids) + 1))
            ids.append(SPECIAL.image if image else first_id + len(ids))
        entries.append(
            {
                "uid": f"u{number}",
                "start": start,
                "length": len(pieces),
                "images": sum(image for image, _ in pieces),
            }
        )
    num_images = sum(entry["images"] for entry in entries)
    return Pack(
        ids=np.array(ids, np.int64),
        targets=np.array(targets, np.int64).reshape(-1, 2),
        documents=entries,
        images=images if images is not None else [JPEG] * num_images,
    )


def one(pack, **options):
    return collate([expand(pack, SPEC, SIDE, **options)], SPEC, 6)


def expected(documents):
    """Expand by hand, token by token: (id, document, position, wanted next id)."""
    tokens = []
    number = 10
    for index, pieces in enumerate(documents):
        row = []
        for image, target in pieces:
            if image:
                row += [(SPECIAL.image, False)] * 4
            else:
                row.append((number, target))
            number += 1
        for at, (token, _) in enumerate(row):
            follower = row[at + 1] if at + 1 < len(row) else (0, False)
            wanted = follower[0] if follower[1] else IGNORE_INDEX
            tokens.append((token, index, at, wanted))
    return tokens


@settings(deadline=None)
@given(PACKS)
def test_a_row_is_what_expanding_by_hand_gives(documents):
    batch = one(build(documents))
    tokens = expected(documents)
    n = len(tokens)
    ids, index, positions, labels = (torch.tensor(column) for column in zip(*tokens, strict=True))
    assert batch["input_ids"].shape == (1, 60)
    assert batch["input_ids"][0, :n].equal(ids)
    assert (batch["input_ids"][0, n:] == SPECIAL.pad).all()
    assert batch["document_ids"][0, :n].equal(index.int())
    assert (batch["document_ids"][0, n:] == -1).all()
    assert batch["position_ids"][0, :n].equal(positions)
    assert batch["position_ids"][0, n:].equal(torch.arange(60 - n))
    assert batch["labels"][0, :n].equal(labels)
    assert (batch["labels"][0, n:] == IGNORE_INDEX).all()
    assert batch["tokens"] == n


@settings(deadline=None)
@given(st.lists(PACKS, min_size=1, max_size=3), st.booleans())
def test_flat_positions_point_at_images_and_targets(rows, isolate):
    batch = collate([expand(build(r), SPEC, SIDE, isolate) for r in rows], SPEC, 6)
    flat_ids, flat_labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    num_images = sum(image for row in rows for d in row for image, _ in d)
    assert batch["images"].shape == (num_images, SIDE, SIDE, 3)
    assert len(batch["image_positions"]) == num_images * 4
    assert (flat_ids[batch["image_positions"]] == SPECIAL.image).all()
    assert flat_labels[batch["target_positions"]].equal(batch["target_ids"])
    assert (flat_labels != IGNORE_INDEX).sum() == len(batch["target_ids"])
    assert batch["target_rows"].equal(batch["target_positions"] // 60)
    # A target lies in the document of the position that asks for it, and is text.
    documents = batch["document_ids"].flatten()
    at = batch["target_positions"]
    assert flat_ids[at + 1].equal(batch["target_ids"])
    assert documents[at + 1].equal(documents[at])
    assert not torch.isin(batch["target_ids"], torch.tensor([SPECIAL.image, SPECIAL.pad])).any()


@settings(deadline=None)
@given(st.lists(PACKS, min_size=1, max_size=3))
def test_segments_cover_every_position_and_part_documents(rows):
    batch = collate([expand(build(r), SPEC, SIDE) for r in rows], SPEC, 6)
    bounds = batch["cu_seqlens"]
    assert bounds.dtype == torch.int32
    assert len(bounds) == len(rows) * 7 + 1
    assert bounds[0] == 0
    assert bounds[-1] == 60 * len(rows)
    assert (bounds.diff() >= 0).all()
    assert bounds.diff().max() <= batch["max_length"] == 60
    rows_of = torch.arange(60 * len(rows)) // 60 * 100
    segments = rows_of + batch["document_ids"].flatten()
    changes = (segments.diff() != 0).nonzero().flatten() + 1
    assert set(bounds.tolist()) == {0, *changes.tolist(), 60 * len(rows)}
    starts = bounds[:-1][bounds.diff() > 0].long()
    assert (batch["position_ids"].flatten()[starts] == 0).all()


@settings(deadline=None)
@given(st.lists(PACKS, min_size=1, max_size=3))
def test_without_isolation_rows_are_whole_and_labels_stay(rows):
    packs = [build(r) for r in rows]
    apart = collate([expand(p, SPEC, SIDE) for p in packs], SPEC, 6)
    joined = collate([expand(p, SPEC, SIDE, isolate=False) for p in packs], SPEC, 6)
    assert joined["position_ids"].equal(torch.arange(60).repeat(len(rows), 1))
    assert sorted(set(joined["cu_seqlens"].tolist())) == [60 * b for b in range(len(rows) + 1)]
    for name in ("input_ids", "labels", "document_ids", "target_ids", "images"):
        assert joined[name].equal(apart[name])


CAPTION = [(False, False), (True, False), (False, True), (False, True)]


def test_images_are_decoded_in_the_order_of_their_marks():
    pictures = [picture(random.Random(seed), (20, 16)) for seed in range(3)]
    batch = one(build([CAPTION, [*CAPTION, (True, False)]], pictures))
    for number, data in enumerate(pictures):
        assert np.array_equal(batch["images"][number].numpy(), decode_image(data, SIDE))


@pytest.mark.parametrize("broken", [b"", b"no picture", JPEG[:200]])
def test_a_broken_picture_silences_its_document_and_moves_nothing(broken):
    good = one(build([CAPTION] * 3))
    batch = one(build([CAPTION] * 3, [JPEG, broken, JPEG]))
    for name in ("input_ids", "position_ids", "document_ids", "cu_seqlens", "image_positions"):
        assert batch[name].equal(good[name])
    assert batch["images"].shape == good["images"].shape
    assert (batch["images"][1] == 0).all()
    assert batch["images"][2].equal(good["images"][2])
    document = batch["document_ids"] == 1
    assert (batch["labels"][document] == IGNORE_INDEX).all()
    assert batch["labels"][~document].equal(good["labels"][~document])
    ((uid, reason),) = batch["corrupt"]
    assert uid == "u1"
    assert "cannot be decoded" in reason
    assert good["corrupt"] == []


def test_a_pack_of_text_alone_has_an_empty_image_tensor():
    batch = one(build([[(False, False), (False, True)]]))
    assert batch["images"].shape == (0, SIDE, SIDE, 3)
    assert batch["images"].dtype == torch.uint8
    assert batch["image_positions"].shape == (0,)


def test_a_pack_without_targets_has_empty_targets():
    batch = one(build([[(False, False), (False, False)]]))
    assert batch["target_ids"].shape == (0,)
    assert batch["target_ids"].dtype == torch.int64


def test_a_pack_made_for_another_grid_is_refused_with_the_numbers():
    pack = build([CAPTION] * 6)
    with pytest.raises(PackError, match=r"72 tokens.*does not fit context 60 at grid 3"):
        expand(pack, replace(SPEC, grid=3), SIDE)
    with pytest.raises(PackError, match="6 image marks and 5 images"):
        expand(build([CAPTION] * 6, [JPEG] * 5), SPEC, SIDE)


def test_rows_that_do_not_fit_one_batch_are_refused():
    row = expand(build([CAPTION] * 3), SPEC, SIDE)
    with pytest.raises(PackError, match=r"a row of grid 2 .* in a batch of grid 3"):
        collate([row], replace(SPEC, grid=3), 6)
    with pytest.raises(PackError, match="holds 3 documents, max_documents is 2"):
        collate([row], SPEC, 2)
    with pytest.raises(PackError, match="images of side 9 and 8"):
        collate([row, expand(build([CAPTION]), SPEC, 9)], SPEC, 6)
