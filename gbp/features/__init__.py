"""Features: what the channels of a layer respond to, over any number of images.

Names of images, a model and a layer come in; pictures of each channel, an index and a file of numbers come
out, and a run that was stopped goes on (Zeiler & Fergus 2013, Figure 2).  It may import everything but the
command line.
"""
