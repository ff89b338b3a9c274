"""Base models: where the weights come from, their facts and limits.

``service`` is the catalog in the database; ``fetch`` is the work outside it (``python -m luthier.catalog``),
the only part that needs the extra ``train``.
"""
