"""The report of a verification as one HTML file that needs nothing else: no script, no font, no image."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from iq.verify.peaks import Gpu, peaks_of
from iq.verify.results import KernelReport, TargetReport

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 3rem } .how { border-left: 4px solid #b58900; padding: .5rem 1rem; background: #fdf6e3 }
table { border-collapse: collapse; font-size: 12px } th, td { padding: .15rem .6rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999; position: sticky; top: 0; background: #fff } tr + tr td { border-top: 1px solid #e5e5e5 }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } td.text { min-width: 8rem } td.long { min-width: 16rem }
.ok { color: #2a7f2a } .bad { color: #c01717; font-weight: bold }
details { margin: .1rem 0 } summary { cursor: pointer } svg { font: 11px system-ui, sans-serif } .scroll { overflow-x: auto }
"""

_NUMBER = re.compile(r"[-+]?\d[\d.e+\-\N{NARROW NO-BREAK SPACE}]*")
# Characters from which on a cell is of a class.
_ROOM = {"long": 60, "text": 16}

# What of an executable's record the report shows, and what it calls it.
_FACTS = {
    "vgprs": "VGPRs", "agprs": "AGPRs", "sgprs": "SGPRs", "vgpr_spills": "VGPR spills", "sgpr_spills": "SGPR spills",
    "lds": "LDS bytes", "scratch": "scratch bytes", "wave": "wave", "workgroup": "workgroup", "code_bytes": "code bytes",
}  # fmt: skip


def html(reports: Sequence[TargetReport]) -> str:
    """The report, as text of an HTML file."""
    failed = sum(not kernel.passed for report in reports for kernel in report.kernels)
    verdict = f'<span class="bad">{failed} kernels failed</span>' if failed else '<span class="ok">every kernel passed</span>'
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Kernels, run and compared with numpy</title><style>{_STYLE}</style>"
        f"<h1>Kernels, run and compared with numpy</h1><p>{verdict}</p>"
        f"{''.join(_how(*way) for way in dict.fromkeys((r.how, r.approximations) for r in reports if not r.not_run))}"
        f"{_summary(reports)}{''.join(_target(report) for report in reports if not report.not_run)}</html>\n"
    )


def _how(how: str, approximations: Sequence[str]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in approximations)
    return f'<div class="how"><b>{escape(how)}</b>{f" What is approximate:<ul>{notes}</ul>" if notes else ""}</div>'


def rows(report: TargetReport) -> list[dict[str, object]]:
    """The kernels of a target in a line each, for a terminal."""
    return [
        {
            "kernel": kernel.key,
            "verdict": "ok" if kernel.passed else "FAILED",
            "worst": kernel.worst,
            "cases": len(kernel.cases),
        }
        | (_counts(kernel) if report.counted else {})
        for kernel in report.kernels
    ]


def _counts(kernel: KernelReport) -> dict[str, object]:
    return {
        "wave instructions": kernel.instructions,
        "mix of the largest": _mix(kernel.largest.executed.instructions),
        "bound by (model)": kernel.roofline.bound if kernel.roofline else "",
    }


def _summary(reports: Iterable[TargetReport]) -> str:
    rows = [
        [
            escape(r.target) if r.not_run else f'<a href="#{escape(r.target)}">{escape(r.target)}</a>',
            escape(r.bundle),
            escape(f"not run: {r.not_run}" if r.not_run else r.how),
            escape(r.gpu),
            _number(len(r.kernels)),
            _number(sum(not k.passed for k in r.kernels)),
            _number(sum(k.instructions for k in r.kernels)),
            f"{r.seconds:.1f}",
        ]
        for r in reports
    ]
    return _table(("target", "bundle", "how", "peaks of", "kernels", "failed", "wave instructions", "seconds"), rows)


def _target(report: TargetReport) -> str:
    gpu = peaks_of(report.target)
    return (
        f'<h2 id="{escape(report.target)}">{escape(report.target)}</h2><p>{escape(report.how)}</p>'
        "<h3>Kernels</h3><p>Counts are of a kernel's largest case, bytes what its instructions moved, by the bits of one lane's access; "
        f"only an emulated GPU counts.</p>{_kernels(report.kernels)}"
        f"{_roofline(report.kernels, gpu) if gpu else ''}"
        f"<h3>Registers and memory of the dispatches</h3>{_dispatches(report)}"
        f"<h3>Cases</h3>{''.join(map(_cases, report.kernels))}"
    )


def _kernels(kernels: Iterable[KernelReport]) -> str:
    header = (
        "kernel", "verdict", "worst error", "case", "wave instructions", "mix", "bytes read", "bytes written", "LDS read", "LDS written",
        "barriers", "operations a byte", "bound by (model)",
    )  # fmt: skip
    rows = []
    for kernel in kernels:
        largest, executed = kernel.largest, kernel.largest.executed
        roof = kernel.roofline
        rows.append(
            [
                escape(kernel.key),
                _verdict(kernel.passed),
                escape(kernel.worst),
                escape(largest.name),
                _number(executed.instructions.total()),
                escape(_mix(executed.instructions)),
                escape(_widths(executed.bytes_read)),
                escape(_widths(executed.bytes_written)),
                _number(executed.lds_read),
                _number(executed.lds_written),
                _number(executed.barriers),
                "" if roof is None or roof.intensity is None else f"{roof.intensity:.1f}",
                escape(roof.bound if roof else ""),
            ]
        )
    return _table(header, rows)


def _dispatches(report: TargetReport) -> str:
    rows = [
        [escape(fmt), escape(name), *(escape(_fact(facts.get(fact, ""))) for fact in _FACTS)]
        for fmt, dispatches in sorted(report.dispatches.items())
        for name, facts in sorted(dispatches.items())
    ]
    return _table(("format", "dispatch", *_FACTS.values()), rows)


def _fact(value: int | tuple[int, ...] | str) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cases(kernel: KernelReport) -> str:
    rows = [
        [
            escape(case.name),
            _verdict(case.passed),
            escape(check.measure) if check else escape(case.failure),
            f"{check.error:.2g}" if check else "",
            f"{check.tolerance:.2g}" if check else "",
            _number(case.executed.instructions.total()),
            escape(", ".join(f"{name} {n}" for name, n in case.executed.launches.items())),
        ]
        for case in kernel.cases
        for check in (case.checks or (None,))
    ]
    table = _table(("case", "verdict", "measured", "error", "allowed", "wave instructions", "launches"), rows)
    opened = "" if kernel.passed else " open"
    return f"<details{opened}><summary>{escape(kernel.key)}: {_verdict(kernel.passed)}</summary>{table}</details>"


def _roofline(kernels: Sequence[KernelReport], gpu: Gpu) -> str:
    """Intensity against the rate that a GPU could reach at most, both logarithmic, with a mark for each product."""
    points = [(k.key, r.intensity, r.ridge, r.bound) for k in kernels if (r := k.roofline) and r.intensity and r.ridge]
    if not points:
        return ""
    width, height, left, bottom = 720, 300, 60, 40
    low, high = -2.0, 4.0  # powers of ten, of operations a byte
    top = math.log10(2 * max(gpu.vector, gpu.matrix, gpu.dot) * gpu.clocks)
    base = math.log10(gpu.bandwidth) + low

    def x(intensity: float) -> float:
        return left + (math.log10(intensity) - low) / (high - low) * (width - left)

    def y(rate: float) -> float:
        return (height - bottom) * (1 - (math.log10(rate) - base) / (top - base))

    parts = []
    roofs: dict[int, list[str]] = {}
    for unit, rate in (("vector f32", gpu.vector), ("matrix f16", gpu.matrix), ("dot int8", gpu.dot)):
        roofs.setdefault(rate, []).append(unit)
    for rate, units in roofs.items():
        peak = rate * gpu.clocks
        ridge = peak / gpu.bandwidth
        parts.append(
            f'<polyline points="{x(10**low):.1f},{y(gpu.bandwidth * 10**low):.1f} {x(ridge):.1f},{y(peak):.1f} {width},{y(peak):.1f}" '
            'fill="none" stroke="#888"/>'
            f'<text x="{width - 4}" y="{y(peak) - 4:.1f}" text-anchor="end">{", ".join(units)}: {peak / 1e12:.0f} T/s</text>'
        )
    for key, intensity, ridge, bound in points:
        reached = min(intensity, ridge) * gpu.bandwidth
        parts.append(
            f'<circle cx="{x(intensity):.1f}" cy="{y(reached):.1f}" r="3.5" fill="#268bd2" fill-opacity=".5">'
            f"<title>{escape(key)}: {intensity:.2f} operations a byte, at most {reached / 1e12:.2f} T/s, "
            f"bound by {escape(bound)}</title></circle>"
        )
    parts += [
        f'<text x="{x(10.0**power):.1f}" y="{height - bottom + 16}" text-anchor="{"end" if power == high else "middle"}">1e{power}</text>'
        for power in range(int(low), int(high) + 1)
    ]
    parts.append(f'<text x="{(width + left) / 2}" y="{height - 6}" text-anchor="middle">operations for each byte of memory moved</text>')
    return (
        "<h3>Roofline: a model</h3><p>Not measured. Where the products of the (small) largest cases lie under the declared peaks of "
        f"{escape(gpu.name)}: {gpu.compute_units} compute units, {gpu.clock / 1e9:.2f} GHz, {gpu.bandwidth / 1e9:.0f} GB/s. Caches, "
        "latency and how much of the GPU a shape fills are not in it. Point at a mark for its name.</p>"
        f'<svg width="{width}" height="{height}" role="img" aria-label="roofline">{"".join(parts)}</svg>'
    )


def _mix(instructions: Mapping[str, int]) -> str:
    total = sum(instructions.values())
    ordered = sorted(instructions.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * n / total:.0f}%" for name, n in ordered if n * 200 >= total)


def _widths(moved: Mapping[int, int]) -> str:
    total = sum(moved.values())
    by_width = ", ".join(f"{bits}: {_number(n)}" for bits, n in sorted(moved.items(), reverse=True))
    return f"{_number(total)} ({by_width})" if total else "0"


def _verdict(passed: bool) -> str:
    return '<span class="ok">passed</span>' if passed else '<span class="bad">FAILED</span>'


def _number(n: int) -> str:
    return f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: str) -> str:
    """Numbers stand right, texts have room for their length."""
    if _NUMBER.fullmatch(content):
        kind = "n"
    elif "<" in content:
        kind = ""
    else:
        kind = next((name for name, length in _ROOM.items() if len(content) >= length), "")
    return f'<td class="{kind}">{content}</td>' if kind else f"<td>{content}</td>"
