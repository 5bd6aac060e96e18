"""All rules' cases: the first families stand in tests/modules.py, each later one in a file of its own.

A family is a module with CASES (rule -> cases for the laws), ATTAINED (rule -> cases by hand) and MUTANTS (module of the
rule, rule, a text of its source, what replaces it).
"""

from tests import family_convolution, family_curves, family_fused, family_normalisation, family_products
from tests.modules import CASES as CORE

FAMILIES = (family_convolution, family_curves, family_fused, family_normalisation, family_products)
CASES = CORE | {rule: cases for family in FAMILIES for rule, cases in family.CASES.items()}
