"""Ways of choosing tokens that benches measure, by their names on the command line."""

from __future__ import annotations

from helix_mq.sdk.options import RequestOptions

SAMPLINGS: dict[str, RequestOptions] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "temperature 0.8, top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "temperature 0.8, 5 logprobs": {"temperature": 0.8, "logprobs": True, "top_logprobs": 5},
}
