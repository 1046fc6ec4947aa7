"""What rollouts put and trainers get: the name of a sample, and where its tensors lie."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    sample_id: str
    uri: str = ""
