"""Errors that a user can mend; each message says what was found, what was expected, what to do."""


class UserError(ValueError):
    """A mistake of the user's; commands print its message alone and exit with 2."""


class ConfigError(UserError):
    """A composed config that cannot run."""


class ShardError(UserError):
    """A raw or packed shard, or a folder of them, that cannot be read."""


class PackError(UserError):
    """Packs, a pack spec or a mixture that do not fit together."""


class CheckpointError(UserError):
    """A checkpoint or model folder that cannot be loaded here."""


class ImageError(ValueError):
    """One image that cannot be decoded; it costs its own sample, never the run."""
