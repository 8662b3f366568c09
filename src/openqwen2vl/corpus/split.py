"""Which descriptions are kept for the held-out questions: a pure function of the description."""

import hashlib

HELD_OUT_SHARE = 0.1


def is_held_out(description: str) -> bool:
    """True for about one description in ten, always the same ones, whatever the corpus seed.

    Training data is drawn from the others only, so a held-out picture can never have been seen:
    neither its pixels nor another picture of the same description.
    """
    digest = hashlib.blake2b(description.encode(), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**64
