"""Which model an endpoint serves, asked before a load: also whether there is anyone at all."""

from __future__ import annotations

import os

import httpx

from bench.serve.http import parse_base
from helix_mq.errors import ConfigError, LocalError

TIMEOUT_S = 10.0
MAX_NAME_CHARS = 512


async def first_model(url: str, key_env: str) -> str:
    """The first of GET /models. LocalError naming the URL when there is no answer to go by."""
    parse_base(url)
    key = os.environ.get(key_env, "") if key_env else ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = f"{url.rstrip('/')}/models"
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, headers=headers, trust_env=False) as http:
            answer = await http.get(address)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as e:
        raise LocalError(
            f"{address} does not answer ({str(e) or type(e).__name__}): check --url"
        ) from None
    if answer.status_code != 200:
        raise LocalError(
            f"{address} answers {answer.status_code}: check --url and --api-key-env, or name the "
            "model with --model"
        )
    try:
        name = answer.json()["data"][0]["id"]
    except (ValueError, LookupError, TypeError):
        name = None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        raise ConfigError(f"{address} names no model: give --model", param="model")
    return name
