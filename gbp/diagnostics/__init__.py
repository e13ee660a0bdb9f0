"""gbp looked at from outside: its steps, scores and gradient beside other runtimes', and the layer table.

In comes a model, out come a `Verification` or an `Inspection`.  May import the explainer and everything
below it.
"""
