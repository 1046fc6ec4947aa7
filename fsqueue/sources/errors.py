"""The errors of sources; each names the source, the prompt where it is about one, and what to do."""

from __future__ import annotations

from fsqueue.errors import FsQueueError


class SourceError(FsQueueError):
    """A source did not give what it was asked for.

    Attributes:
        source: its name, with its endpoint.
        prompt_id: the prompt that was asked for; None where it is about the source alone.
    """

    def __init__(self, source: str, prompt_id: str | None, problem: str) -> None:
        about = "" if prompt_id is None else f", prompt {prompt_id!r}"
        super().__init__(f"{source}{about}: {problem}")
        self.source = source
        self.prompt_id = prompt_id


class PromptRefusedError(SourceError, ValueError):
    """The source will never take this prompt: it is too long, or empty, or has tokens that the model does not know."""


class SourceSetupError(SourceError, ValueError):
    """The source's answers are not what they have to be, and would not be for any prompt: change how it is set up."""


class SourceUnreachableError(SourceError, TimeoutError):
    """There was no usable answer, for as long as it was to be waited for; later there may be.

    Attributes:
        waited_s: for how long.
    """

    def __init__(self, source: str, prompt_id: str | None, waited_s: float, last: str) -> None:
        super().__init__(
            source,
            prompt_id,
            f"no answer for {waited_s:.0f} s, at last because {last}: see to the server, then start again, "
            "which goes on with what is left",
        )
        self.waited_s = waited_s

    def __str__(self) -> str:
        return str(self.args[0])
