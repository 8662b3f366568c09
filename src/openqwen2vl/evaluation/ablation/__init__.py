"""Ablations of data mixtures: what each job was and gave, effects between mixtures, words."""
