"""Doubt: measures of whether a map says what it seems to say.

Maps, images and an `Explainer` come in; numbers come out, and a `Sanity`.  It may import the explainer, what
makes its results and its pictures, the methods, and the importer, whose weights it randomises.
"""
