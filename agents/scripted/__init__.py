"""Policies that do not learn: they have no `init` and no `update`, and their parameters are `()`."""
