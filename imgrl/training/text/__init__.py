"""Language models on TRL's trainers: the loss and the anchors are ours, loops, generation and saving are theirs.

``snapshots`` are the anchors, ``scoring`` fills a batch, ``supervised``, ``preference`` and ``online`` are the trainers
(the only modules that import TRL at the top; nothing imports them but ``session``, inside a function), ``heldout``
measures.
"""
