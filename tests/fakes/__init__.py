"""The real role groups over toy workers in this process, with a model of one table."""

from fakes.hub import Event, Faults, Hub
from fakes.roles import FakeRoles
from fakes.toy import ToyPolicy, ToyScalar

__all__ = ["Event", "FakeRoles", "Faults", "Hub", "ToyPolicy", "ToyScalar"]
