"""Plans that are kept on this machine, so that the next process opens a model without building one.

In come the files of a model, what its plan depends on besides, and a function that builds the plan.  Out
comes the plan: built, or taken from the cache, where its weights are in a file that is mapped read-only.
Processes that map it share its pages.  `content` names files by what is in them; `entry` writes and reads one
file of the cache; `plans` decides what is kept.

It may import kernels and errors.
"""
