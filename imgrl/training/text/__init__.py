"""Language models on TRL's trainers: the loss and the anchors are ours, loops, generation and saving are theirs.

``checks`` refuses what cannot run, ``copies`` are the anchors, ``checkpoints`` the folders they are saved in, ``heads``
and ``scoring`` fill a batch, ``supervised``, ``preference`` and ``online`` are the trainers (the only modules that
import TRL at the top; nothing imports them but ``session``, inside a function), ``pissa`` is what peft leaves open of
that start, ``heldout`` measures, ``rescue`` saves where an error ends a run, ``quiet`` silences the libraries.
"""
