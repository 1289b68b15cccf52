"""Merging of partial attention."""

import torch

from engine.attention.torch_backend import merge_state


def test_merging_two_halves_equals_the_whole():
    scores, values = torch.randn(5, 2, 30), torch.randn(30, 8)

    def state(part):
        return torch.softmax(scores[..., part], -1) @ values[part], torch.logsumexp(scores[..., part], -1)

    (output, lse), (partial, partial_lse) = state(slice(0, 11)), state(slice(11, 30))
    merge_state(output, lse, partial, partial_lse)
    whole, whole_lse = state(slice(None))
    torch.testing.assert_close(output, whole)
    torch.testing.assert_close(lse, whole_lse)
