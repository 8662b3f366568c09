"""How fast is one training step, in real tokens, against padded rows and against leaking packs?

    python bench/train_step.py                            # the tiny model on the CPU
    python bench/train_step.py --device cuda --model 2b   # the 2B model's shapes on one GPU

A step is forward, loss, backward and fused AdamW. Each variant runs in a process of its own, so
that peak memory is its own and running out of it costs one row. On the CPU the processes take
turns, round by round; on a GPU they follow each other. The weights, the documents and the number
of targets are the same; pads are never counted as tokens.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import corpora
import figures
from stepper import Settings, Stepper
from variants import DESCRIPTIONS

COLUMNS = (
    "",
    *["tokens/s", "ms/step", "MFU", "step MiB", "peak MiB", "positions", "ours is", "loss"],
)
GOAL = 1.5  # real tokens/s over padded rows, on the CPU with the demo's captions


def main() -> None:
    """Measure the variants asked for and print the table, then the headline."""
    options = _options()
    names = options.variant or list(DESCRIPTIONS)
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(Path(folder), options)
    together = [names] if options.device == "cpu" else [[name] for name in names]
    results: dict[str, dict[str, Any]] = {}
    for group in together:
        results |= _measure(group, settings, options.rounds)
    report = _report(results, options)
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=("tiny", "2b"), default="tiny")
    parser.add_argument("--variant", action="append", choices=list(DESCRIPTIONS), help="repeatable")
    parser.add_argument("--grid", type=int, help="visual tokens along a side; the model's own")
    parser.add_argument("--context", type=int, help="tokens of a pack; 512, 4096 for 2b")
    parser.add_argument("--packs", type=int, help="packs in a step; 8, 4 for 2b")
    parser.add_argument("--frozen-tower", action="store_true", help="as the paper's stages do")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="different ones in a round")
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    tiny = options.model == "tiny"
    options.grid = options.grid or (6 if tiny else 12)
    options.packs = options.packs or (8 if tiny else 4)
    options.context = options.context or (512 if tiny else 4096)
    if options.quick:
        options.rounds, options.steps, options.packs = 2, 1, 2
    return options


def _settings(folder: Path, options: argparse.Namespace) -> Settings:
    draw = corpora.demo_steps if options.model == "tiny" else corpora.photo_steps
    return Settings(
        device=options.device,
        model=options.model,
        grid=options.grid,
        threads=options.threads,
        frozen_tower=options.frozen_tower,
        data=draw(folder, options.steps, options.packs, options.context, options.grid),
    )


def _measure(names: Sequence[str], settings: Settings, rounds: int) -> dict[str, dict[str, Any]]:
    """Run some variants in turns; gives each one's facts and its seconds a round, or its error."""
    spawn = multiprocessing.get_context("spawn")
    workers, processes = {}, []
    for name in names:
        here, there = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(there, name, settings), daemon=True)
        process.start()
        there.close()
        workers[name] = here
        processes.append(process)
    results: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in names}
    for turn in range(rounds + 2):
        for name, pipe in workers.items():
            if "error" not in results[name]:
                answer = _ask(pipe, ("facts", *["round"] * rounds, "memory")[turn])
                results[name]["seconds"] += answer.pop("seconds", [])
                results[name] |= answer
    for pipe, process in zip(workers.values(), processes, strict=True):
        pipe.close()
        process.join()  # the next group needs this one's memory
    return results


def _ask(pipe: Connection, question: str) -> dict[str, Any]:
    try:
        pipe.send(question)
        answer: dict[str, Any] = pipe.recv()
    except (EOFError, OSError):
        return {"error": "its process died, perhaps for want of memory"}
    return answer


def _serve(pipe: Connection, variant: str, settings: Settings) -> None:
    """Answer the parent's questions until it leaves."""
    try:
        pipe.recv()
        stepper = Stepper(variant, settings)
        pipe.send(stepper.facts())
        while True:
            question = pipe.recv()
            pipe.send({"seconds": [stepper.round()]} if question == "round" else stepper.memory())
    except EOFError:
        return
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


def _report(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    done = {name: result for name, result in results.items() if "error" not in result}
    peak = max((result["matmul_flops"] for result in done.values()), default=0.0)
    variants: dict[str, Any] = {
        name: {"error": result["error"]} for name, result in results.items() if name not in done
    }
    for name, result in done.items():
        speeds = [result["tokens"] * options.steps / second for second in result["seconds"]]
        variants[name] = {
            "tokens_per_s": figures.spread(speeds),
            "ms_per_step": 1000 * median(result["seconds"]) / options.steps,
            "mfu": result["strict_flops"] / result["tokens"] * median(speeds) / peak,
            **{key: result[key] for key in ("step_mib", "peak_mib", "positions", "loss_first")},
        }
    ours = done.get("ours")
    others = [name for name in done if ours and name != "ours"]
    facts = next(iter(done.values()), {})
    return {
        "bench": "train_step",
        "machine": figures.machine(),
        "device": facts.get("device"),
        "settings": {key: value for key, value in vars(options).items() if key != "json"},
        "data": {key: facts.get(key) for key in ("tokens", "documents", "targets", "images")},
        "peak": {"flops_per_s": peak, "of": "a square matmul measured in the same run"},
        "variants": variants,
        "ratios": {n: figures.ratios(done[n]["seconds"], ours["seconds"]) for n in others},
        "memory_ratios": {n: done[n]["step_mib"] / ours["step_mib"] for n in others},
    }


def _print(report: dict[str, Any]) -> None:
    data, settings = report["data"], report["settings"]
    if report["device"] is not None:
        print(
            f"{settings['model']} on {report['device']}; a step: {settings['packs']} packs of "
            f"{settings['context']}, {data['documents']:.0f} documents, {data['tokens']:.0f} real "
            f"tokens, {data['targets']:.0f} targets"
        )
    rows, failed = [], []
    for name, row in report["variants"].items():
        if "error" in row:
            failed.append(f"{DESCRIPTIONS[name]}: {row['error']}")
            continue
        ratio = report["ratios"].get(name)
        speeds = f"{row['tokens_per_s']['median']:,.0f}", f"{row['ms_per_step']:.1f}"
        memory = f"{row['step_mib']:.0f}", f"{row['peak_mib']:.0f}"
        shape = f"{row['positions']:.0f}", figures.show(ratio) if ratio else "-"
        share, loss = f"{row['mfu']:.1%}", f"{row['loss_first']:.6f}"
        rows.append((DESCRIPTIONS[name], *speeds, share, *memory, *shape, loss))
    if rows:
        figures.table(COLUMNS, rows)
        peak = report["peak"]
        speed = f"{peak['flops_per_s'] / 1e9:,.0f} GFLOP/s"
        print(f"MFU: necessary FLOPs over the {speed} of {peak['of']}")
    for line in failed:
        print(line)


def _headline(report: dict[str, Any]) -> str:
    ratio = report["ratios"].get("padded")
    if ratio is None:
        return "no ratio: ours and padded did not both run"
    cpu = report["settings"]["device"] == "cpu"
    verdict = (
        f"; the goal is {GOAL}x: {'met' if ratio['median'] >= GOAL else 'missed'}" if cpu else ""
    )
    return f"ours over padded rows, real tokens/s: {figures.show(ratio)}{verdict}"


if __name__ == "__main__":
    main()
