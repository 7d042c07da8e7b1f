"""`iq quantize`: a model's weights, into a new GGUF file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from iq.cli.show import json_option, print_json, progress


def _tensor_types(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [text.partition("=")[::2] for text in given]
    for text, (pattern, name) in zip(given, pairs, strict=True):
        if not pattern or not name:
            raise click.BadParameter(f"{text!r}: expected PATTERN=TYPE, as in attn_v=q8_0")
    return pairs


@click.command("quantize")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("destination", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.option("--type", "type_name", required=True, help="A mix of llama.cpp's: q4_k_m, q8_0, iq4_xs ...")
@click.option("--imatrix", type=click.Path(path_type=Path), help="A file of importances that llama-imatrix made.")
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    callback=_tensor_types,
    metavar="PATTERN=TYPE",
    help="Another type for the tensors whose name a pattern is found in; may be given several times, the first that fits decides.",
)
@click.option("--pure", is_flag=True, help="The same type for every weight, without the mix's own rules.")
@click.option("--allow-requantize", is_flag=True, help="Also take weights that are quantized already, which costs precision.")
@click.option("--force", is_flag=True, help="Replace OUT.gguf where it exists.")
@json_option
def quantize_command(
    source: Path,
    destination: Path,
    type_name: str,
    imatrix: Path | None,
    tensor_types: list[tuple[str, str]],
    pure: bool,
    allow_requantize: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize the weights of a GGUF or safetensors file, with the types that llama.cpp's tool gives them; what is no weight is copied."""
    from iq.gguf.convert import quantize_file

    with progress() as step:
        converted = quantize_file(
            source,
            destination,
            type_name,
            imatrix=imatrix,
            tensor_types=tensor_types,
            pure=pure,
            requantize=allow_requantize,
            force=force,
            progress=step,
        )
    if as_json:
        print_json(converted)
        return
    quantized = Counter(c.format for c in converted if c.was != c.format)
    before, after = sum(c.bytes_before for c in converted), sum(c.bytes_after for c in converted)
    for c in converted:
        if c.why:
            click.echo(f"{c.name}: {c.format if c.was != c.format else f'{c.was}, as it was'}: {c.why}")
    kinds = ", ".join(f"{count} {name}" for name, count in quantized.most_common())
    click.echo(f"{destination}: {quantized.total()} of {len(converted)} tensors quantized ({kinds}), {before} bytes of tensors now {after}")
