"""CTranslate2: the caller groups prompts by their prefix, which is given as the static prompt and cached."""

from typing import Any

import ctranslate2
from job import Answer, run
from tokenizers import Tokenizer


def load(job: dict[str, Any]) -> Any:
    tokenizer = Tokenizer.from_file(f"{job['model_dir']}/tokenizer.json")
    model = ctranslate2.Generator(
        job["options"]["exported"],
        device="cpu",
        compute_type="float32",
        intra_threads=job["threads"],
        inter_threads=1,
    )

    def generate(prompts: list[list[int]], max_tokens: int) -> Answer:
        answers: Answer = [[] for _ in prompts]
        for shared, members in groups(prompts):
            results = model.generate_batch(
                [[tokenizer.id_to_token(i) for i in prompts[m][shared:]] for m in members],
                static_prompt=[tokenizer.id_to_token(i) for i in prompts[members[0]][:shared]] or None,
                cache_static_prompt=True,
                max_length=max_tokens,
                min_length=max_tokens,
                include_prompt_in_result=False,
                sampling_topk=1,
                end_token=[],
                max_batch_size=64,
            )
            for member, result in zip(members, results, strict=True):
                answers[member] = list(result.sequences_ids[0])
        return answers

    return generate


def groups(prompts: list[list[int]]) -> list[tuple[int, list[int]]]:
    """(tokens shared, members): sorted prompts, cut where less than half of the first one is common."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    found: list[tuple[int, list[int]]] = []
    for index in order:
        if found:
            shared, members = found[-1]
            common = common_prefix(prompts[members[0]], prompts[index])
            if common * 2 >= len(prompts[members[0]]):
                found[-1] = (min(shared, common), [*members, index])
                continue
        found.append((len(prompts[index]) - 1, [index]))
    return found


def common_prefix(left: list[int], right: list[int]) -> int:
    count = 0
    while count < min(len(left), len(right)) - 1 and left[count] == right[count]:
        count += 1
    return count


run(load)
