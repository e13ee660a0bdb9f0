"""Rows as text: tables of at most 100 columns, the bars, and the table for the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bars import bar_of
from measure import (
    AS_TORCH,
    CAPTUM_BEST,
    COMMAND_LINE,
    COMPILE,
    FIVE_TARGETS,
    MEMORY,
    MORE_THREADS,
    OF_PEAK,
    OF_READING,
    RUNTIME,
    TORCH_BEST,
    XPLIQUE,
    Row,
)  # fmt: skip

#: The load from which a machine is too busy to be measured.
BUSY = 0.5

HEADERS = {
    "speed": """
Milliseconds; peer ÷ gbp guided; and what share of gbp's time the machine at its limit would need
for the arithmetic of direct convolutions (peak), for reading dense layers' weights twice (read)

                    | forward                | guided          | ÷ gbp guided         | share of
network       N thr |    gbp    ORT    torch |    gbp   Captum | Captum    ORT  torch | peak read""",
    "keras": """
Milliseconds of guided explanations: of the file that Keras exports by gbp, of the network by Xplique, and
of the same network as torch exports it by gbp

network       N thr |    gbp  Xplique  torch's | Xplique ÷ gbp  ORT forward ÷ gbp  torch's ÷ Keras'""",
    "scaling": """
Milliseconds of guided explanations, batch 1

network       thr | one target  five targets  one thread | five ÷ one  1 thread ÷ all""",
    "memory": """
Megabytes at the peak, beyond a process that has explained one picture

network       N thr |    gbp  Captum NCHW  Captum channels last | Captum ÷ gbp""",
    "start": """
Seconds of a whole process, from files to file

network       |    gbp   Captum  Captum ÷ gbp | gbp, empty kernel cache""",
}


def machine_text(facts: Mapping[str, Any]) -> str:
    """The machine's limits and the peers, absent ones too."""
    peers = ", ".join(f"{name} {version or 'absent'}" for name, version in facts["peers"].items())
    limits = "; ".join(
        f"{n} thread{'s' * (n != '1')} {peak:.0f} GFLOP/s, reads {facts['read_gbytes'][n]:.0f} GB/s"
        for n, peak in facts["peak_gflops"].items()
    )
    busy = "\nThe machine is busy: no figure below can be relied on." if facts["load"] > BUSY else ""
    return f"{facts['cpu']}, load {facts['load']:.1f}\n{limits}\n{peers}{busy}"


def line(row: Row) -> str:
    """One row of its section's table; a figure with a bar is marked with ✓ or, if it misses, ✗."""

    def figure(name: str, width: int, digits: int = 2) -> str:
        value, bar = row["figures"].get(name), bar_of(row, name)
        mark = " " if bar is None or value is None else "✓" if bar.passes(value) else "✗"
        return _cell(value, width - 1, digits) + mark

    values, name, threads = row["values"], row["network"], row["threads"]
    match row["section"]:
        case "speed":
            ms = {who: 1e3 * seconds for who, seconds in values.items()}
            forward = _cells((ms["gbp forward"], ms.get("onnxruntime"), best(ms, "torch")), (7, 7, 9))
            guided = _cells((ms["gbp guided"], best(ms, "captum")), (7, 9))
            ratios = figure(CAPTUM_BEST, 7) + figure(RUNTIME, 7) + figure(TORCH_BEST, 7)
            shares = _cell(row["figures"][OF_PEAK], 5, 2) + _cell(row["figures"].get(OF_READING), 5, 2)
            return f"{name:13s}{row['batch']:2d}{threads:4d} |{forward} |{guided} |{ratios} |{shares}"
        case "keras":
            ms = {who: 1e3 * seconds for who, seconds in values.items()}
            cells = _cells((ms["gbp guided"], ms["xplique"], ms["gbp guided, torch's export"]), (7, 9, 9))
            ratios = figure(XPLIQUE, 14) + figure(RUNTIME, 19) + figure(AS_TORCH, 18)
            return f"{name:16s}{row['batch']:2d}{threads:4d} |{cells} |{ratios}"
        case "scaling":
            ms = {who: 1e3 * seconds for who, seconds in values.items()}
            cells = _cells((ms["one target"], ms["five targets"], ms["one thread"]), (11, 14, 12))
            return f"{name:13s}{threads:4d} |{cells} |{figure(FIVE_TARGETS, 12)}{figure(MORE_THREADS, 16)}"
        case "memory":
            cells = _cells(
                (values["gbp"], values.get("captum NCHW"), values.get("captum channels last")), (7, 13, 22)
            )
            return f"{name:13s}{row['batch']:2d}{threads:4d} |{cells} |{figure(MEMORY, 14)}"
        case _:
            cells = _cells((values["gbp"], values.get("captum")), (7, 9), digits=2)
            return f"{name:13s} |{cells}{figure(COMMAND_LINE, 14)} |{figure(COMPILE, 25, 1)}"


def best(values: Mapping[str, float], peer: str) -> float | None:
    """The least of a peer's values; None where it is absent."""
    return min((value for who, value in values.items() if who.startswith(peer)), default=None)


def bar_lines(row: Row) -> list[str]:
    """A line for each figure of a row that has a bar."""
    lines = []
    for figure, value in row["figures"].items():
        bar = bar_of(row, figure)
        if bar:
            case = f"{row['section']:8s}{row['network']:13s}N {row['batch']:<3d}threads {row['threads']}"
            verdict = "pass" if bar.passes(value) else "MISS"
            lines.append(f"{case}  {figure:26s}{value:7.2f}  {bar!s:6s} {verdict}  {_gbp_alone(row)}")
    return lines


def _gbp_alone(row: Row) -> str:
    values = row["values"]
    if row["section"] == "memory":
        return f"gbp {values['gbp']:.0f} MB"
    seconds = next(seconds for who, seconds in values.items() if who in ("gbp guided", "one target", "gbp"))
    return f"gbp {1e3 * seconds:.1f} ms"


#: Names of networks in documents.
TITLES = {
    "vgg16": "VGG16", "vgg19": "VGG19", "resnet18": "ResNet-18", "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121", "densenet201": "DenseNet-201", "inception_v1": "Inception v1",
    "mobilenet_v2": "MobileNetV2", "efficientnet_b0": "EfficientNet-B0", "squeezenet": "SqueezeNet",
    "xception": "Xception",
}  # fmt: skip


def markdown(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The README's tables: a row for each network and batch, on all threads."""
    lines = [f"On {facts['cpu']}, {max(map(int, facts['peak_gflops']))} threads:"]
    tables: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("speed", CAPTUM_BEST, {RUNTIME: RUNTIME}),
        ("keras", XPLIQUE, {RUNTIME: RUNTIME, AS_TORCH: AS_TORCH}),
    )
    for section, peer, others in tables:
        chosen = [row for row in rows if row["section"] == section and row["all_threads"]]
        if not chosen:
            continue
        titles = ["network", "batch", "gbp, ms", peer[0].upper() + peer[1:], *others]
        lines += ["", _markdown_row(titles), _markdown_row(["---", *["--:"] * (len(titles) - 1)])]
        for row in chosen:
            ms = 1e3 * row["values"]["gbp guided"]
            figures = [_cell(row["figures"].get(figure), 0, 2) for figure in (peer, *others)]
            network = str(row["network"])
            title = TITLES.get(network, network)
            cells = [title, str(row["batch"]), f"{ms:.1f}" if ms < 30 else f"{ms:.0f}", *figures]
            lines.append(_markdown_row(cells))
    return "\n".join(lines)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(values: Iterable[float | None], widths: Iterable[int], digits: int = 1) -> str:
    return "".join(_cell(value, width, digits) for value, width in zip(values, widths, strict=True))


def _cell(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'–' if value is None else format(value, f'.{digits}f'):>{width}s}"
