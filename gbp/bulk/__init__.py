"""Explains images in any number: pictures and arrays in a folder, with an index of what is there.

Names of images, a model and options come in; files and one index come out, and a run that was killed goes on
where it stopped.  `Explainer` does all of the work.  This folder may import everything but the command line.
"""
