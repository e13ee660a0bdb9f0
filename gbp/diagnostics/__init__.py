"""Diagnostics: gbp's steps, scores and gradient are compared with other runtimes; and the table of layers.

A model comes in; a `Verification` or an `Inspection` comes out.  It may import what gbp exports and
everything below that.
"""
