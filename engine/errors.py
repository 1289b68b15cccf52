"""What the engine raises at its edge. No torch here, so that callers may name these cheaply."""


class ModelNotUsable(Exception):
    """The model cannot be found, fetched or read. The message is one sentence that says what to do."""


class ModelRefused(Exception):
    """The model can be read, but would compute wrong results here. The message is the reason."""


class ChatTemplateError(ValueError):
    """The model's chat template cannot render this conversation. The message says why."""


class GrammarError(ValueError):
    """No output can be held to this grammar. The message says why."""


class EngineConfigError(ValueError):
    """Settings that cannot work together or on this machine. The message says what to change."""
