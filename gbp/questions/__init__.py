"""Questions: what a map explains.

The arguments `target` and `score` come in; classes come out, or scores of them with their gradients.  This
folder runs no network.  It may import arguments and errors.
"""
