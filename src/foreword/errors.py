"""Every error that Foreword raises on purpose, as one tree.

An error is one sentence that says where, what was expected, what was found, and the mend. The command line prints
it and exits with ``exit_status``; the server answers with ``http_status`` and ``code`` in OpenAI's error shape.

    ForewordError
    ├── UsageError            what the user typed cannot be done
    │   ├── DataError         a file of examples: names the file and the line
    │   ├── TemplateError     a template, or a field that it needs
    │   ├── VerbalizerError   a verbalizer, or a label outside it
    │   ├── SettingError      one setting of a run or a model, by its name
    │   ├── RecipeError       a recipe: names the file and the line, and shows it
    │   └── RequestError      one request to an engine
    │       ├── PromptTooLong
    │       ├── BodyTooLarge
    │       │   └── HeadTooLarge
    │       ├── DamagedUpload
    │       ├── RequestTimeout          its parts came too slowly
    │       ├── UnsupportedMediaType
    │       └── UnsupportedOption
    ├── ModelError
    │   ├── UnknownModel      no such Hub id, folder or built-in name
    │   ├── UnsupportedModel  the model cannot carry a prefix, and why
    │   └── ModelMismatch     a prefix that was made for another model
    ├── BankError
    │   ├── UnknownTask       no such task or version
    │   │   └── ExpiredTask   its time to live is over
    │   ├── CorruptFile       truncated, altered or not ours
    │   └── PublishConflict   the name is taken or reserved, or another writer won
    ├── AccessError           who asks may not: no key, or one that does not reach so far
    │   ├── Forbidden
    │   ├── UnknownHost       asked by a name that is not the server's
    │   └── LimitReached      a rate limit or a quota
    ├── TrainingError         a run that cannot start, go on or be resumed
    ├── Interrupted           the user pressed Ctrl-C: says what is left and how to go on
    ├── DoctorError           something that was checked is broken
    ├── BenchError            a measurement that failed, or results that do not fit together
    └── EngineError           the engine is stopped or broken
        ├── EngineBusy        too many requests are waiting
        │   └── TooManyConnections
        └── AnswerTimeout     an answer took longer than the server allows
"""


class ForewordError(Exception):
    """Root of the tree. ``str(error)`` is one sentence fit for a terminal or an HTTP body.

    >>> try:
    ...     foreword.Bank().load("moood")
    ... except foreword.ForewordError as error:
    ...     error.http_status
    404
    """

    exit_status = 1
    http_status = 500
    code = "internal_error"
    retry_after: float | None = None
    """Seconds after which the same request may go through, if it ever may."""


class UsageError(ForewordError):
    exit_status = 2
    http_status = 400
    code = "invalid_value"


class DataError(UsageError):
    code = "invalid_data"


class TemplateError(UsageError):
    code = "invalid_template"


class VerbalizerError(UsageError):
    code = "invalid_verbalizer"


class SettingError(UsageError):
    """``key`` names the setting as recipes spell it, so that a recipe can show the line it stands in."""

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key = key


class RecipeError(UsageError):
    code = "invalid_recipe"


class RequestError(UsageError):
    code = "invalid_request"


class PromptTooLong(RequestError):
    code = "context_length_exceeded"


class BodyTooLarge(RequestError):
    http_status = 413
    code = "request_too_large"


class HeadTooLarge(BodyTooLarge):
    http_status = 431


class DamagedUpload(RequestError):
    code = "corrupt_file"


class RequestTimeout(RequestError):
    http_status = 408
    code = "request_timeout"


class UnsupportedMediaType(RequestError):
    http_status = 415
    code = "unsupported_media_type"


class UnsupportedOption(RequestError):
    """``param`` names the option of a request's body, if there is one."""

    code = "unsupported_parameter"

    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param


class ModelError(ForewordError):
    http_status = 400
    code = "invalid_model"


class UnknownModel(ModelError):
    http_status = 404
    code = "model_not_found"


class UnsupportedModel(ModelError):
    code = "unsupported_model"


class ModelMismatch(ModelError):
    http_status = 409
    code = "model_mismatch"


class BankError(ForewordError):
    code = "bank_error"


class UnknownTask(BankError):
    http_status = 404
    code = "model_not_found"


class ExpiredTask(UnknownTask):
    code = "model_expired"


class CorruptFile(BankError):
    code = "corrupt_file"


class PublishConflict(BankError):
    http_status = 409
    code = "conflict"


class AccessError(ForewordError):
    http_status = 401
    code = "invalid_api_key"


class Forbidden(AccessError):
    http_status = 403
    code = "permission_denied"


class UnknownHost(AccessError):
    http_status = 421
    code = "unknown_host"


class LimitReached(AccessError):
    http_status = 429
    code = "rate_limit_exceeded"

    def __init__(self, sentence: str, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class TrainingError(ForewordError):
    code = "training_error"


class Interrupted(ForewordError):
    exit_status = 130
    code = "interrupted"


class DoctorError(ForewordError):
    code = "broken_installation"


class BenchError(ForewordError):
    code = "bench_error"


class EngineError(ForewordError):
    http_status = 503
    code = "engine_unavailable"


class EngineBusy(EngineError):
    http_status = 429
    code = "engine_busy"
    retry_after = 1.0


class TooManyConnections(EngineBusy):
    http_status = 503
    code = "server_busy"


class AnswerTimeout(EngineError):
    http_status = 504
    code = "timeout"
