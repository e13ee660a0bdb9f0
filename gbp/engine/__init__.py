"""The engine: runs a loaded model on images of any number and size.

A `Source` of the importer, images and a question come in; an `Attribution` comes out, or a `Run`, of which
any gradient may be asked.  `Explainer` is the engine with the arguments that a user gives.  It may import
results, questions, inputs, the rules, and everything that these may import.
"""
