"""openvino-genai: continuous batching with its prefix cache, the model exported by its own tool in fp32."""

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from job import Answer, run


def load(job: dict[str, Any]) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    scheduler.max_num_seqs = job["options"]["in_flight"] or 1024
    scheduler.cache_size = 0
    scheduler.num_kv_blocks = (job["kv_tokens"] or 90_000) // 32
    pipeline = genai.ContinuousBatchingPipeline(
        job["options"]["exported"],
        scheduler,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": job["threads"],
        },
    )

    def generate(prompts: list[list[int]], max_tokens: int) -> Answer:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = [ov.Tensor(np.array([ids], np.int64)) for ids in prompts]
        results = pipeline.generate(inputs, [config] * len(inputs))
        return [list(result.m_generation_ids[0]) for result in results]

    return generate


run(load)
