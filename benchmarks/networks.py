"""Whole networks: gbp's guided explanations beside onnxruntime, torch and Captum, and the bars to clear.

    python benchmarks/networks.py                                            everything: an hour or two
    python benchmarks/networks.py --bars                                     the bars alone: ten minutes
    python benchmarks/networks.py --only speed --networks vgg16,resnet50 --batch 1,8 --threads 2

Sections: speed     a guided explanation of a batch, beside Captum's and beside forward runs
          keras     the same of networks as Keras exports them, beside Xplique's
          scaling   five targets beside one, one thread beside all
          memory    extra memory of a batch of 16, at its peak
          start     a whole process, from files to file; and the same on an empty kernel cache

The calls of a row take turns in one process; each is timed after a silence and an untimed call, and the
median counts.  Ratios are peer ÷ gbp: above 1, gbp is faster.  The networks are those of models/zoo.py with
seeded weights; each library's scores are compared with gbp's before it is timed.  onnxruntime, torch and
captum are no dependencies of gbp: without one of them its columns stay empty.  Keras and Xplique need another
environment as a rule: `--keras` names its Python, and without them the section keras is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
import report
from bars import BARS, selections
from keras_peer import APPLICATIONS
from machine import machine
from measure import SECTIONS, Row, Selection, Setting, Workload, measure
from workloads import NETWORKS

from gbp.kernels.parallel.threads import available as available_threads

BATCHES = (1, 8, 32)
MEMORY_BATCH = 16
#: Those on which a section is measured where none are named.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "speed": NETWORKS,
    "keras": tuple(APPLICATIONS),
    "scaling": NETWORKS,
    "memory": ("vgg16", "resnet50"),
    "start": ("squeezenet",),
}


#: Of which networks a section knows how.
KNOWN = dict.fromkeys(SECTIONS, NETWORKS) | {"keras": tuple(APPLICATIONS)}
NAMES = tuple(dict.fromkeys((*NETWORKS, *APPLICATIONS)))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    threads = arguments.threads or tuple(range(1, min(2, available_threads()) + 1))
    facts = machine(threads)
    facts["peers"]["xplique"] = peers.xplique_version(arguments.keras)
    print(report.machine_text(facts), flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in _measured(arguments, _setting(arguments, threads, facts)):
        rows.append(row)
        for line in report.bar_lines(row) if arguments.bars else [report.line(row)]:
            print(line, flush=True)
        text = json.dumps({"machine": facts, "rows": rows}, indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n")  # after each row: an hour's work may be interrupted
    if not arguments.bars:
        print("", *(line for row in rows for line in report.bar_lines(row)), sep="\n")
    if arguments.markdown:
        print("", report.markdown(facts, rows), sep="\n")


def _setting(arguments: argparse.Namespace, threads: tuple[int, ...], facts: dict[str, Any]) -> Setting:
    return Setting(
        threads=(max(threads),) if arguments.bars else threads,
        rounds=arguments.rounds,
        budget=arguments.budget,
        found=facts["peers"],
        peak_gflops={int(n): peak for n, peak in facts["peak_gflops"].items()},
        read_gbytes={int(n): limit for n, limit in facts["read_gbytes"].items()},
        keras=arguments.keras,
    )


def _measured(arguments: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """The rows of everything selected; prints the header of each section."""
    section, work = "", None
    for selection in _selected(arguments):
        if selection.section == "keras" and setting.found["xplique"] is None:
            continue
        if not arguments.bars and selection.section != section:
            section = selection.section
            print(report.HEADERS[section], flush=True)
        if work is None or work.name != selection.network:
            work = None  # gone before the next is made: VGG16 in every library takes gigabytes
            work = Workload(selection.network)
        yield from measure(selection, work, setting)


def _selected(arguments: argparse.Namespace) -> list[Selection]:
    """The measurements, section by section."""
    sections = arguments.only or SECTIONS
    if arguments.bars:
        batches = arguments.batch or BATCHES
        wanted = selections(
            bar for bar in BARS if bar.section not in ("speed", "keras") or bar.batch in batches
        )
    else:
        wanted = [
            Selection(section, name, _batches(section, arguments))
            for section in SECTIONS
            for name in arguments.networks or DEFAULTS[section]
            if name in KNOWN[section]
        ]
    return [
        selection
        for selection in wanted
        if selection.section in sections
        and (not arguments.networks or selection.network in arguments.networks)
    ]


def _batches(section: str, arguments: argparse.Namespace) -> tuple[int, ...]:
    return {
        "speed": arguments.batch or BATCHES,
        "keras": arguments.batch or (1,),
        "memory": (MEMORY_BATCH,),
    }.get(section, (1,))


def _some_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        unknown = [name for name in text.split(",") if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(choices)}")
        return tuple(text.split(","))

    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bars", action="store_true", help="measure what has a bar, and say what passes")
    parser.add_argument("--only", type=_some_of(SECTIONS), metavar="SECTION,…", help=", ".join(SECTIONS))
    parser.add_argument("--networks", type=_some_of(NAMES), metavar="NAME,…", help=", ".join(NAMES))
    parser.add_argument("--batch", type=_numbers, metavar="N,…", help="default: 1,8,32")
    parser.add_argument("--threads", type=_numbers, metavar="N,…", help="default: 1,2")
    parser.add_argument("--rounds", type=int, default=15, help="at most so many a row; default: 15")
    parser.add_argument("--budget", type=float, default=20, help="seconds a row, but 3 rounds; default: 20")
    parser.add_argument("--keras", default=sys.executable, metavar="PYTHON", help="which has Xplique")
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument("--json", type=Path, default=Path("out/bench.json"), metavar="FILE")
    return parser


if __name__ == "__main__":
    main()
