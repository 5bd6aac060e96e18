"""Bounds on what a network does: outward-rounded numbers, norms, one rule per operator, and the ledger of a proof."""
