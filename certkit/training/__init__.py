"""Training of Lipschitz networks: Muon, constraints on every weight, and the loop."""
