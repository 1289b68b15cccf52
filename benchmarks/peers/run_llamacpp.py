"""llama.cpp through xllamacpp's server: slots over unified KV, each reuses the longest prefix it finds."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp
from job import Answer, run


def load(job: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = job["options"]["exported"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    slots = job["options"]["slots"]
    params.n_parallel = slots
    params.n_ctx = job["kv_tokens"] or slots * job["longest"]
    params.kv_unified = True
    params.cont_batching = True
    params.n_batch = params.n_ubatch = 1024
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.warmup = False
    server = xllamacpp.Server(params)

    def one(prompt: list[int], max_tokens: int) -> str:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        answer: Any = server.handle_completions(body | {"cache_prompt": True})
        assert answer["usage"]["completion_tokens"] == max_tokens, answer["usage"]
        return str(answer["choices"][0]["text"])

    def generate(prompts: list[list[int]], max_tokens: int) -> Answer:
        with ThreadPoolExecutor(slots) as pool:
            return list(pool.map(one, prompts, [max_tokens] * len(prompts)))

    return generate


run(load)
