"""The router: membership, admission, routes, request lifecycle, HTTP. No torch, no model maths."""
