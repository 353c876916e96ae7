"""In-process stand-ins for the role groups: the same verbs and promises, a model of one table."""

from fakes.hub import Event, FakeAnswer, Faults, Hub
from fakes.roles import FakeRoles
from fakes.toy import ToyPolicy, ToyScalar

__all__ = ["Event", "FakeAnswer", "FakeRoles", "Faults", "Hub", "ToyPolicy", "ToyScalar"]
