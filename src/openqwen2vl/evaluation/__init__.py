"""What a model's answers are worth: likelihood and generation over question files."""
