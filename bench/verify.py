"""How fast is a corpus proven to be packed, by its documents alone, word by word, byte for byte?

    python bench/verify.py

Three corpora of captions, with pictures of 1, 15 and 75 KB, are packed and verified on one core, in
turns with the plain way to do it: both sides walked with ``tarfile``, every JSON parsed alone, the
documents compared as sets and, word by word, each caption encoded alone and its ids compared or,
byte for byte, each picture by its sha256. Speeds are per second of
processor time, with the files in memory, so that other work on the machine and the disk count
little; the pictures are random bytes, which nothing here decodes.
"""

import argparse
import hashlib
import json
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import corpora
import figures
from transformers import PreTrainedTokenizerFast

from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.formats.tokens import encode_text, special_tokens, train_tokenizer
from openqwen2vl.packing.proof.verify import VerifyRequest, verify
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

CONTEXT, GRID, VOCABULARY, SHARDS = 4096, 12, 2048, 4
SIZES = (1_000, 15_000, 75_000)  # bytes of a picture
INDEX_GOAL = 50_000  # documents/s a core
DEEP_GOAL = 400  # MB/s a core
JUDGED = {"index": (1_000,), "text": (), "deep": (15_000, 75_000)}
MODES = ("index", "text", "deep")


def main() -> None:
    """Verify each corpus both ways in turns and print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=150, help="of pictures in a corpus")
    parser.add_argument("--most", type=int, default=24_000, help="documents in a corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.megabytes, options.most, options.rounds = 4, 600, 2
    report: dict[str, Any] = {
        "bench": "verify",
        "machine": figures.machine(),
        "corpora": {},
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
    }
    for size in SIZES:
        with tempfile.TemporaryDirectory() as root:
            count = min(options.most, options.megabytes * 1_000_000 // size)
            tokenizer = _make(Path(root), size, count // SHARDS)
            report["corpora"][size] = _measure(Path(root), tokenizer, options.rounds)
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _make(root: Path, size: int, count: int) -> PreTrainedTokenizerFast:
    rng = random.Random(size)
    noise = rng.randbytes(2 * size)
    for shard in range(SHARDS):
        samples = []
        for _ in range(count):
            start, length = rng.randrange(size // 2), round(size * rng.uniform(0.6, 1.4))
            picture = noise[start : start + length]
            uid = f"{rng.getrandbits(128):032x}"
            samples.append(Sample(uid, picture, 512, 384, caption=corpora.caption(rng)))
        write_raw_shard(root / "raw" / f"{shard:05d}.tar", samples)
    tokenizer = train_tokenizer([corpora.caption(rng) for _ in range(2000)], VOCABULARY)
    spec = make_spec(tokenizer, CONTEXT, GRID, "qwen2_5")
    request = PackRequest(input=root / "raw", out=root / "packs", source="bench", spec=spec)
    pack_folder(request, tokenizer)
    return tokenizer


def _measure(root: Path, tokenizer: PreTrainedTokenizerFast, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode in MODES:
        deep, words = mode == "deep", tokenizer if mode == "text" else None
        turns = [
            tuple(_timed(who, root, deep, words) for who in (_ours, _plain)) for _ in range(rounds)
        ]
        (documents, size), same = turns[0][0][1], all(a[1] == b[1] for a, b in turns)
        seconds = [[turn[i][0] for turn in turns] for i in (0, 1)]
        found[mode] = {
            "documents_per_s": {
                who: figures.spread([documents / s for s in mine])
                for who, mine in zip(("ours", "plain"), seconds, strict=True)
            },
            "megabytes_per_s": {
                who: figures.spread([size / s / 1e6 for s in mine])
                for who, mine in zip(("ours", "plain"), seconds, strict=True)
            },
            "ratio": figures.ratios(seconds[1], seconds[0]),
            "same_counts": same,
            "documents": documents,
        }
    return found


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def _ours(root: Path, deep: bool, words: PreTrainedTokenizerFast | None) -> tuple[int, int]:
    request = VerifyRequest(input=root / "raw", packs=(root / "packs",), deep=deep, tokenizer=words)
    found = verify(request)
    if found.faults.counts:
        raise RuntimeError(f"the corpus does not verify: {dict(found.faults.counts)}")
    return found.documents, found.bytes


def _plain(root: Path, deep: bool, words: PreTrainedTokenizerFast | None) -> tuple[int, int]:
    """Give the number of documents and the bytes of pictures that both sides agree on."""
    raw = _raw_documents(root / "raw", deep, words)
    packed = _packed_documents(root / "packs", deep, words is not None)
    if raw.keys() != packed.keys() or ((deep or words) and raw != packed):
        raise RuntimeError("the corpus is not what was packed")
    return len(raw), sum(size for size, _, _ in raw.values()) if deep else 0


Documents = dict[tuple[str, str, str], tuple[int, str, list[int]]]
"""Of each document, by shard, key and uid: the size of its picture, and its sha256 and the
document's ids where asked."""


def _raw_documents(folder: Path, deep: bool, words: PreTrainedTokenizerFast | None) -> Documents:
    found: Documents = {}
    marks = None if words is None else special_tokens(words)
    for path in sorted(folder.glob("*.tar")):
        uids: dict[str, str] = {}
        pictures: dict[str, tuple[int, str]] = {}
        ids: dict[str, list[int]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                if ending == "json":
                    uids[key] = json.loads(_read(tar, member))["uid"]
                elif ending == "jpg":
                    pictures[key] = (member.size, _hash(tar, member, deep))
                elif ending == "txt" and words is not None and marks is not None:
                    text = encode_text(words, f"\n{_read(tar, member).decode()}")
                    ids[key] = [marks.bos, marks.image, *text, marks.eos]
        found |= {
            (path.stem, key, uid): (*pictures[key], ids.get(key, [])) for key, uid in uids.items()
        }
    return found


def _packed_documents(folder: Path, deep: bool, words: bool) -> Documents:
    found: Documents = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            documents: list[tuple[str, str, str]] = []
            ids: list[list[int]] = []
            for member in tar:
                _, ending = member.name.split(".", 1)
                if ending == "json":
                    pack = json.loads(_read(tar, member))
                    named = pack["documents"]
                    documents = [(d["shard"], d["key"], d["uid"]) for d in named]
                    spans = [(d["start"], d["start"] + d["length"]) for d in named if words]
                    ids = [pack["ids"][a:b] for a, b in spans] or [[]] * len(named)
                else:
                    place = int(ending.partition(".")[0])
                    picture = (member.size, _hash(tar, member, deep))
                    found[documents[place]] = (*picture, ids[place])
    return found


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _hash(tar: tarfile.TarFile, member: tarfile.TarInfo, deep: bool) -> str:
    return hashlib.sha256(_read(tar, member)).hexdigest() if deep else ""


def _print(report: Mapping[str, Any]) -> None:
    rows = []
    for size, modes in report["corpora"].items():
        for mode, found in modes.items():
            speeds = found["documents_per_s"], found["megabytes_per_s"]
            rate, bytes_rate = (speed["ours"]["median"] for speed in speeds)
            met = bytes_rate >= DEEP_GOAL if mode == "deep" else rate >= INDEX_GOAL
            goal = "400 MB/s" if mode == "deep" else "50,000/s"
            judged = size in JUDGED[mode] and not report["settings"]["quick"]
            rows.append(
                (
                    f"{mode}, {size // 1000} KB",
                    f"{rate:,.0f}/s",
                    f"{bytes_rate:,.0f} MB/s" if mode == "deep" else "",
                    f"{speeds[0]['plain']['median']:,.0f}/s",
                    figures.show(found["ratio"]),
                    goal if judged else "",
                    ("met" if met else "missed") if judged else "",
                )
            )
    figures.table(("verify", "ours", "", "plain", "ours is", "goal", ""), rows)


def _headline(report: Mapping[str, Any]) -> str:
    index, text, deep = (
        report["corpora"][size][mode]["ratio"]
        for size, mode in ((1_000, "index"), (1_000, "text"), (15_000, "deep"))
    )
    return (
        f"ours over a plain walk: {figures.show(index)} by documents, {figures.show(text)} word "
        f"by word, {figures.show(deep)} byte for byte at 15 KB"
    )


if __name__ == "__main__":
    main()
