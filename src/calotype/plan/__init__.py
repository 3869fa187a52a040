"""The plan: pictures, machine and a time budget in; a recipe, its reasons and its cost out."""

from calotype.plan.choices import Choice as Choice
from calotype.plan.make import Pace as Pace
from calotype.plan.make import Plan as Plan
from calotype.plan.make import make_plan as make_plan
