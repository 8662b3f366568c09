"""De-duplication: of samples that are alike one stays, and none that an evaluation shows."""
