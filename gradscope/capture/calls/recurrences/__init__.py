"""Find what recurs in the graph of a loss, by data flow alone: which tensors are the state, and what it is called.

``find`` asks in this order: what is used several times (``anchors``), which of it upon what it made itself
(``chains``), which step every node belongs to (``steps``; ``joins`` where only inputs are projected), which tensors
cross from step to step (``states``, by the smallest ``cut``, followed by ``matching``), and what enters and leaves
(``entering``; ``passing``: what is not followed). Of the result, ``axes`` tells the batch, with ``attention``,
``initial`` the values it starts from, ``naming`` its name. ``memory`` keeps it for graphs of the same form, with what
else was asked of the nodes to find it.
"""
