"""Models and devices as data, for the cost model.

A device's rates are its data sheet's dense bf16 operations and memory bandwidth times the fraction that
well-made kernels reach. The fractions are public measurements of others, rounded; nothing was measured here.
"""

from engine.cost_model import HardwareProfile, ModelShape, RateCurve

MODELS: dict[str, ModelShape] = {
    "llama-3.1-8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256),
    "qwen2.5-7b": ModelShape(28, 3584, 18944, 28, 4, 128, 152064),
    "qwen2.5-14b": ModelShape(48, 5120, 13824, 40, 8, 128, 152064),
    "smollm2-1.7b": ModelShape(24, 2048, 8192, 32, 32, 64, 49152, tied_embeddings=True),
    "smollm2-135m": ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied_embeddings=True),
}

# Products fill tiles of 64 rows; fewer rows cost the same. Attention has tiles of 16 rows too, the least that
# a matrix instruction takes; there each key read from shared memory serves fewer rows: half the rate.
_TILE_ROWS = 64
_SMALL_TILE_ROWS = 16
# About twelve kernels a layer at 4 us each; the host launches them ahead of the device.
_LAUNCH_SECONDS_PER_LAYER = 50e-6
# next_batch, commit and building inputs for about a thousand running sequences.
_HOST_SECONDS_PER_STEP = 2e-3


def _gpu(
    name: str,
    *,
    memory_gib: float,
    peak_ops: float,
    peak_bandwidth: float,
    gemm_fraction: float,
    attention_fraction: float,
    bandwidth_fraction: float,
) -> HardwareProfile:
    gemm, attention = peak_ops * gemm_fraction, peak_ops * attention_fraction
    bandwidth = peak_bandwidth * bandwidth_fraction
    full_from_tile = RateCurve((1, _TILE_ROWS), (gemm / _TILE_ROWS, gemm))
    return HardwareProfile(
        name=name,
        dtype_bytes=2,
        memory_bytes=int(memory_gib * 2**30),
        memory_bandwidth=bandwidth,
        gemm=full_from_tile,
        head=full_from_tile,
        attention=RateCurve(
            (1, _SMALL_TILE_ROWS, _TILE_ROWS),
            (attention / 2 / _SMALL_TILE_ROWS, attention / 2, attention),
        ),
        elementwise_seconds_per_value=2 / bandwidth,
        launch_seconds_per_layer=_LAUNCH_SECONDS_PER_LAYER,
        host_seconds_per_step=_HOST_SECONDS_PER_STEP,
    )


HARDWARE: dict[str, HardwareProfile] = {
    # SXM4 data sheet: 312 TFLOP/s, 2,039 GB/s. cuBLAS reaches 240-270 on large products; FlashAttention-2
    # 180-230 forward at head size 128; STREAM-like copies 1.7-1.8 TB/s.
    "a100": _gpu(
        "a100",
        memory_gib=79.15,
        peak_ops=312e12,
        peak_bandwidth=2.039e12,
        gemm_fraction=0.80,
        attention_fraction=0.60,
        bandwidth_fraction=0.85,
    ),
    # SXM5: 989 TFLOP/s, 3.35 TB/s. Large products are held to 650-750 by power; kernels of the
    # FlashAttention-2 kind (as Triton writes them) reach 350-450, FlashAttention-3 more.
    "h100": _gpu(
        "h100",
        memory_gib=79.1,
        peak_ops=989e12,
        peak_bandwidth=3.35e12,
        gemm_fraction=0.70,
        attention_fraction=0.40,
        bandwidth_fraction=0.90,
    ),
    # The H100's cores with 141 GB at 4.8 TB/s.
    "h200": _gpu(
        "h200",
        memory_gib=139.8,
        peak_ops=989e12,
        peak_bandwidth=4.8e12,
        gemm_fraction=0.70,
        attention_fraction=0.40,
        bandwidth_fraction=0.90,
    ),
    # 1,307 TFLOP/s, 5.3 TB/s. hipBLASLt is reported at 500-650 TFLOP/s, flash attention at 350-450, copies at
    # 4.0-4.3 TB/s.
    "mi300x": _gpu(
        "mi300x",
        memory_gib=191.7,
        peak_ops=1307e12,
        peak_bandwidth=5.3e12,
        gemm_fraction=0.45,
        attention_fraction=0.30,
        bandwidth_fraction=0.80,
    ),
}
