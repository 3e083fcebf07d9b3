"""The parts of the client SDK; `helix_mq.client.Client` puts them together.

`options`, `results` and `errors` are what callers see; `stream_state` is pure; `link` alone talks
to a transport.
"""
