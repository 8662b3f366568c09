"""The verbs: one thin file a command, one primary config each."""
