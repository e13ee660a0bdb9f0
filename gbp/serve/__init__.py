"""The server: `Explainer`s behind HTTP, and one page for people.

Explainers and limits come in; an ASGI application comes out, which `gbp serve` runs.  It may import what gbp
exports, methods, questions, rules, what decodes pictures, and the number of threads.  It also imports
Starlette, uvicorn, prometheus-client and python-multipart, the extra `serve`.
"""
