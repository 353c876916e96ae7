from orchestrator.placement import place_roles
from orchestrator.config import RoleName
from dataclasses import dataclass
@dataclass
class Plan:
    layout: object
def make_plan(config): return Plan(place_roles(config.cluster, RoleName))
def render_plan(plan): return str(plan)
