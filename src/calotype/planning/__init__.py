"""The plan: pictures, machine and a time budget in; a recipe, its reasons and its cost out."""

from calotype.planning.choices import Choice as Choice
from calotype.planning.make import Plan as Plan
from calotype.planning.make import make_plan as make_plan
