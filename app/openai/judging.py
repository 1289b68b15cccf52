"""Scores by a model that generates: how likely the first token of its answer says yes, not no.

So a pair of texts costs its prompt and one token, and the documents of one query share the prompt up to them.
"""

import math
from collections.abc import Iterable, Sequence

from app.openai.body import EmbeddingForm, Translated, TranslationContext, refuse
from app.openai.parameters import bound_output
from engine.errors import ChatTemplateError
from engine.request import Completion, SamplingParams, TokenIds

# What differs between the documents of a query comes last, but for what small models need to be told again.
_PROMPT = (
    "Does the document answer the query?\n\nQuery: {query}\n\nDocument: {document}\n\n"
    "Answer with yes or no only."
)
_YES = ("yes", "Yes", "YES", " yes", " Yes")
_NO = ("no", "No", "NO", " no", " No")

Named = tuple[str, str]  # a text with its place in the body


def judge_pairs(
    model: str, pairs: Iterable[tuple[Named, Named]], form: EmbeddingForm, context: TranslationContext
) -> Translated:
    """A chat for each (query, document)."""
    yes, no = _single_tokens(_YES, context), _single_tokens(_NO, context)
    if not yes or not no:
        refuse(
            f"The model '{model}' has no single token for yes or for no, and so gives no scores.",
            "model",
            "unsupported_value",
        )
    sampling = SamplingParams(
        max_tokens=1, temperature=0, ignore_eos=True, top_logprobs=0, logprobs_of=yes + no
    )
    prompts = tuple(_prompt(query, document, context) for query, document in pairs)
    return Translated(model, prompts, sampling, num_yes=len(yes), embedding=form)


def yes_shares(asked: Translated, completions: Sequence[Completion]) -> list[float]:
    """Of each pair, the chance of yes as against no: 0 to 1."""
    return [_share(one, asked.num_yes) for one in completions]


def _share(completion: Completion, num_yes: int) -> float:
    assert completion.logprobs is not None
    logprobs = [logprob for _, logprob in completion.logprobs[0].top]
    highest = max(logprobs)  # so that the largest is 1, however unlikely both are
    chances = [math.exp(logprob - highest) for logprob in logprobs]
    return math.fsum(chances[:num_yes]) / math.fsum(chances)


def _prompt(query: Named, document: Named, context: TranslationContext) -> TokenIds:
    for name, text in (query, document):
        if not text:
            refuse(f"Invalid '{name}': it must not be empty.", name, "invalid_value")
    name = document[0]
    content = _PROMPT.format(query=query[1], document=document[1])
    try:
        prompt_ids = context.tokenizer.render_chat([{"role": "user", "content": content}])
    except ChatTemplateError as error:
        refuse(f"The model's chat template refuses this: {error}", name, "invalid_value")
    bound_output(len(prompt_ids), 1, context, param=name)
    return prompt_ids


def _single_tokens(words: Sequence[str], context: TranslationContext) -> tuple[int, ...]:
    """Ids of the spellings that are one token."""
    num_added = len(context.tokenizer.encode(""))  # a bos
    ids = [context.tokenizer.encode(word)[num_added:] for word in words]
    return tuple(dict.fromkeys(int(word_ids[0]) for word_ids in ids if len(word_ids) == 1))
