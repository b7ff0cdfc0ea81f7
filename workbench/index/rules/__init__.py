"""Labels by rule: what holds on the tokens on which a feature is active, chosen on half of the texts."""
