"""Plans a run: pictures, machine and a time budget in; a recipe, its reasons and its cost out."""

from calotype.planning.make import make_plan as make_plan
from calotype.planning.make import of_guidance as of_guidance
from calotype.planning.make import searches_level as searches_level
from calotype.planning.plan import Choice as Choice
from calotype.planning.plan import Plan as Plan
