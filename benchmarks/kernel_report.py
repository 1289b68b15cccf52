"""What each kernel needs of each card, from ahead-of-time builds: no GPU is asked.

    python -m benchmarks.kernel_report                      a JSON line per build
    python -m benchmarks.kernel_report --write docs/kernels.md   the table between the file's markers

Registers are per thread; programs are those that fit on one multiprocessor at a time. Must run without
TRITON_INTERPRET.
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.kv_write import kv_write_kernel
from kernels.merge_states import merge_states_kernel
from kernels.prefix_attention import (
    ITEM_FIELDS,
    LAUNCH_OPTIONS,
    NARROW,
    prefix_attention_kernel,
    tile_shape,
)

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
HEAD_DIMS = (64, 128)
DTYPES = ("bf16", "fp16")
# Llama-3.1-8B's heads
KV_HEADS, GROUP, PAGE_SIZE = 8, 4, 16


@dataclass(frozen=True)
class Card:
    """shared_limit: bytes a program may have; shared_total, registers: of a multiprocessor, the registers
    32 bits each."""

    name: str
    target: GPUTarget
    shared_limit: int
    shared_total: int
    registers: int


CARDS = {
    "sm_80": Card("A100", GPUTarget("cuda", 80, 32), 166_912, 167_936, 65_536),
    "sm_90": Card("H100", GPUTarget("cuda", 90, 32), 232_448, 233_472, 65_536),
    "sm_100": Card("B200", GPUTarget("cuda", 100, 32), 232_448, 233_472, 65_536),
    "gfx942": Card("MI300X", GPUTarget("hip", "gfx942", 64), 65_536, 65_536, 131_072),
}


@dataclass(frozen=True)
class Build:
    """One kernel for one card.

    bounded: with a sliding window and a soft cap (attention only).
    registers: of a thread, on AMD its vector registers.
    spill_bytes: local memory a thread uses.
    spilled_vectors, spilled_scalars: registers that AMD's compiler ran out of; it keeps the scalars in lanes
        of a vector register, not in memory. None: NVIDIA's compiler has bytes only.
    shared_bytes: of a program. products: matrix instructions by kind.
    wide_loads, narrow_loads: global loads of 16 bytes and of 2.
    """

    kernel: str
    card: str
    dtype: str
    head_dim: int
    bounded: bool
    registers: int
    spill_bytes: int
    spilled_vectors: int | None
    spilled_scalars: int | None
    shared_bytes: int
    shared_limit: int
    programs: int
    products: dict[str, int]
    wide_loads: int
    narrow_loads: int


def attention_source(dtype: str, head_dim: int, bounded: bool) -> ASTSource:
    wide, block_kv = tile_shape(head_dim, itemsize=2)
    constants = {
        "GROUP": GROUP,
        "KV_HEADS": KV_HEADS,
        "KEY_DIM": head_dim,
        "VALUE_DIM": head_dim,
        "PAGE_SIZE": PAGE_SIZE,
        "ITEM_FIELDS": ITEM_FIELDS,
        "NARROW": NARROW,
        "WIDE": wide,
        "BLOCK_KV": block_kv,
    }
    types = [f"*{dtype}"] * 3 + ["*i32"] * 3 + [f"*{dtype}", "*fp32", "*fp32", "i32", "i32", "fp32"]
    if bounded:
        types += ["fp32", "i32"]
    else:
        constants |= {"soft_cap": None, "window": None}
    return _source(prefix_attention_kernel, types, constants)


def merge_source(dtype: str, head_dim: int, bounded: bool) -> ASTSource:
    constants = {
        "sinks_ptr": None,
        "HEADS": KV_HEADS * GROUP,
        "VALUE_DIM": head_dim,
        "BLOCK_HEADS": 2048 // head_dim,
        "BLOCK_DIM": head_dim,
    }
    return _source(merge_states_kernel, ["*fp32", "*fp32", "*i32", "*i32", "*i32", f"*{dtype}"], constants)


def write_source(dtype: str, head_dim: int, bounded: bool) -> ASTSource:
    constants = {"KV_HEADS": KV_HEADS, "KEY_DIM": head_dim, "VALUE_DIM": head_dim, "BLOCK_ROWS": 32}
    types = [f"*{dtype}"] * 2 + ["*i32"] + [f"*{dtype}"] * 2 + ["i32"] * 5
    return _source(kv_write_kernel, types, constants)


KERNELS = {
    "prefix_attention": (attention_source, LAUNCH_OPTIONS),
    "merge_states": (merge_source, {"num_warps": 4}),
    "kv_write": (write_source, {"num_warps": 4}),
}


def _source(kernel: Any, types: list[str], constants: dict[str, Any]) -> ASTSource:
    """Pointers and strides divisible by 16, as every launch of ours has them; num_rows is not."""
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    aligned = [name for name in names if name.endswith(("_ptr", "_stride"))]
    index = kernel.arg_names.index
    return ASTSource(
        kernel,
        {name: signature[name] for name in kernel.arg_names},
        {(index(name),): value for name, value in constants.items()},
        {(index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def build(kernel: str, card_key: str, dtype: str, head_dim: int, bounded: bool) -> Build:
    card = CARDS[card_key]
    source, options = KERNELS[kernel]
    compiled = triton.compile(source(dtype, head_dim, bounded), target=card.target, options=options)
    read = _read_nvidia if card.target.backend == "cuda" else _read_amd
    code = read(compiled)
    registers = code["registers"]
    shared_bytes = compiled.metadata.shared
    threads = options["num_warps"] * card.target.warp_size
    return Build(
        kernel=kernel,
        card=card_key,
        dtype=dtype,
        head_dim=head_dim,
        bounded=bounded,
        shared_bytes=shared_bytes,
        shared_limit=card.shared_limit,
        programs=min(
            card.registers // (-(-registers // 8) * 8 * threads),
            card.shared_total // (shared_bytes + 1024) if shared_bytes else 32,
            2048 // threads,
        ),
        **code,
    )


def _count(text: str, pattern: str) -> int:
    return len(re.findall(pattern, text))


def _read_nvidia(compiled: Any) -> dict[str, Any]:
    """What the code says of itself, by the names of Build's fields."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [NVIDIA_TOOLS / "cuobjdump", "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    ptx = compiled.asm["ptx"]
    products = {name: _count(ptx, name) for name in (r"mma\.sync", r"wgmma\.mma_async", r"tcgen05\.mma")}
    wide = _count(ptx, r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10") + _count(
        ptx, r"ld\.global[.\w:]*\.v4\.b32"
    )
    return {
        "registers": int(found[1]),
        "spill_bytes": int(found[2]),
        "spilled_vectors": None,
        "spilled_scalars": None,
        "products": _present(products),
        "wide_loads": wide,
        "narrow_loads": _count(ptx, r"ld\.global[.\w:]*\.b16"),
    }


def _read_amd(compiled: Any) -> dict[str, Any]:
    code = compiled.asm["amdgcn"]

    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", code)
        assert found, name
        return int(found[1])

    return {
        "registers": field("vgpr_count"),
        "spill_bytes": field("private_segment_fixed_size"),
        "spilled_vectors": field("vgpr_spill_count"),
        "spilled_scalars": field("sgpr_spill_count"),
        "products": _present({"v_mfma": _count(code, "v_mfma")}),
        "wide_loads": _count(code, "global_load_dwordx4"),
        "narrow_loads": _count(code, r"global_load_(?:ushort|short_d16)"),
    }


def _present(counts: dict[str, int]) -> dict[str, int]:
    return {name.replace("\\", ""): count for name, count in counts.items() if count}


def builds(
    kernels: list[str], cards: list[str], dtypes: list[str], head_dims: list[int], bounded: bool
) -> Iterator[Build]:
    for kernel, card, dtype, head_dim in itertools.product(kernels, cards, dtypes, head_dims):
        yield build(kernel, card, dtype, head_dim, bounded)


def table(rows: list[Build]) -> str:
    lines = [
        f"Built with Triton {triton.__version__}.",
        "",
        "| kernel | card | dtype | head dim | registers | spilled bytes | spilled vectors, scalars "
        "| shared bytes (limit) | programs | matrix products | 16-byte loads |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        products = ", ".join(f"{name} {count}" for name, count in row.products.items()) or "none"
        spilled = "-" if row.spilled_vectors is None else f"{row.spilled_vectors}, {row.spilled_scalars}"
        lines.append(
            f"| {row.kernel} | {row.card} ({CARDS[row.card].name}) | {row.dtype} | {row.head_dim} "
            f"| {row.registers} | {row.spill_bytes} | {spilled} | {row.shared_bytes} ({row.shared_limit}) "
            f"| {row.programs} | {products} | {row.wide_loads} |"
        )
    return "\n".join(lines)


def write_table(file: Path, rows: list[Build]) -> None:
    text = file.read_text()
    replaced, count = re.subn(
        r"(<!-- builds -->\n).*(<!-- end of builds -->)",
        lambda marks: marks[1] + table(rows) + "\n" + marks[2],
        text,
        flags=re.DOTALL,
    )
    assert count == 1, f"{file} needs the markers <!-- builds --> and <!-- end of builds -->"
    file.write_text(replaced)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--cards", nargs="+", choices=CARDS, default=list(CARDS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--head-dims", nargs="+", type=int, default=list(HEAD_DIMS))
    parser.add_argument(
        "--bounded", action="store_true", help="attention with a sliding window and a soft cap"
    )
    parser.add_argument("--write", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    of_each = (arguments.kernels, arguments.cards, arguments.dtypes, arguments.head_dims)
    for row in builds(*of_each, arguments.bounded):
        print(json.dumps(asdict(row)), flush=True)
        rows.append(row)
    if arguments.write:
        write_table(arguments.write, rows)


if __name__ == "__main__":
    main()
