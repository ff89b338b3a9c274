"""HTTP dialects over the domains' services: they translate, they never decide."""
