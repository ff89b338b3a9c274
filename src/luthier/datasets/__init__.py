"""Training data: one rule set for rows, the chat template, token files, packing. No torch, no SQL.

``formats`` owns the rules; ``check`` applies them to a file and ``tokenise`` to the same file again, so that
what the check passes never fails for its format later. ``python -m luthier.datasets`` runs both as processes.
"""
