"""The prompts and the figures of the bench of the prefix cache; its run is a cluster's."""

from __future__ import annotations

from bench.prefix_cache import _TOKENS, Wanted, prompts


def test_prompts_begin_alike_and_end_apart() -> None:
    wanted = Wanted(requests=5, shared_tokens=130, own_tokens=8, output_tokens=1, at_once=1)
    every = prompts(wanted, vocab_size=300)
    assert every == prompts(wanted, vocab_size=300)
    assert len({tuple(p[:130]) for p in every}) == 1
    assert len({tuple(p[130:]) for p in every}) == 5
    assert {len(p) for p in every} == {138}
    assert all(100 <= token < 300 for p in every for token in p)


def test_tokens_of_nodes_are_found_in_the_routers_metrics() -> None:
    text = 'helix_mq_node_tokens_total{node="a"} 1.2e+03\nhelix_mq_node_steps_total{node="a"} 9.0\n'
    assert _TOKENS.findall(text) == [("a", "1.2e+03")]
