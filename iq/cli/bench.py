"""`iq bench`: what calls cost here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from iq.bench import Chain, bench
from iq.cli.show import json_option, print_json, print_table
from iq.errors import DeviceError
from iq.runtime.opening import parse


def _device(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name is None or name.partition(":")[0] == "emulated":
        return name
    try:
        parse(name)
    except DeviceError as error:
        raise click.UsageError(str(error)) from error
    return name


@click.command("bench")
@click.option("--calls", is_flag=True, help="Time calls on the host: one product in several ways, and the chain of a model's layers.")
@click.option("--device", "name", callback=_device, help="Which; by default what IQ_DEVICE says, else cpu.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Where kernels come from; as for iq.Device by default.")
@click.option("--n", type=click.IntRange(min=1), default=4096, show_default=True, help="Rows of the weight of one product.")
@click.option(
    "--k",
    type=click.IntRange(min=64),
    default=4096,
    show_default=True,
    help="Its columns; and the width of the chain, of 8B parameters at 4096.",
)
@click.option("--layers", type=click.IntRange(min=0), default=32, show_default=True, help="Layers of the chain; 0 for none.")
@click.option("--repeat", type=click.IntRange(min=1), default=300, show_default=True, help="How often a call is timed.")
@click.option("--small", is_flag=True, help="Let all layers share the weights of one, for little memory.")
@json_option
def bench_command(
    calls: bool, name: str | None, bundle: Path | None, n: int, k: int, layers: int, repeat: int, small: bool, as_json: bool
) -> None:
    """Time kernels' calls on a device. With q4_0 weights; figures are medians."""
    if not calls:
        raise click.UsageError("say what to time: --calls")
    report = bench(name, bundle, n, k, layers, repeat, small)
    if as_json:
        print_json(report)
        return
    launcher = f", launches by {report.launcher}" if report.launcher else ", through IREE's runtime"
    click.echo(f"{report.device} {report.description}".rstrip() + f": {report.id}, kernels for {report.target}{launcher}\n")
    click.echo(f"One product: q4_0 {n} x {k}, one row of activations")
    print_table([{"way": c.way, "host_us": _number(c.host_us), "and_wait_us": _number(c.wait_us), "note": c.note} for c in report.calls])
    if report.chain:
        chain = report.chain
        click.echo(
            f"\nLayers of a model: {chain.layers}, with {chain.products} products; {chain.weight_bytes / 1e9:.2f} GB of weights are read"
        )
        print_table(_rows(report.chain))


def _rows(chain: Chain) -> list[dict[str, Any]]:
    rows = [{"way": "eager", "host_us": _number(chain.eager_host_us), "ms": f"{chain.eager_ms:.2f}"}]
    if chain.graph_ms is not None:
        rows.append({"way": "graph", "host_us": _number(chain.graph_host_us), "ms": f"{chain.graph_ms:.2f}"})
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
