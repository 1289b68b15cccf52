"""vLLM on the CPU: prefix cache and chunked prefill on, as it comes; KV memory as the job says."""

import os
from typing import Any

from job import Answer, run

BLOCK = 32  # tokens of a cache block; its CPU default is 128, which hits less


def load(job: dict[str, Any]) -> Any:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "4"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{job['threads'] - 1}"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    from vllm import LLM, SamplingParams, TokensPrompt

    block = job["options"].get("block", BLOCK)
    limit = {"num_gpu_blocks_override": job["kv_tokens"] // block} if job["kv_tokens"] else {}
    model = LLM(
        model=job["model_dir"],
        dtype="float32",
        enforce_eager=job["options"]["eager"],
        enable_prefix_caching=True,
        block_size=block,
        max_model_len=job["longest"],
        **limit,
    )

    def generate(prompts: list[list[int]], max_tokens: int) -> Answer:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=True)
        outputs = model.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


run(load)
