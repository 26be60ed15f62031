"""How fast the engine is, beside others on the same weights: ``medport bench``.

Each engine is a process of its own (``worker`` for others, ``own`` for this one) that stays alive and does one
measurement at a time when told to over pipes. So the engines take turns, task by task, and what the machine does
meanwhile hits all of them.
"""
