"""What a run will need, before anything is downloaded or allocated: sizes, memory, steps."""

from safe.plan.memory import MemoryPart, training_memory
from safe.plan.run_plan import Plan, plan_run
from safe.plan.sized import sized_model
from safe.plan.view import plan_text

__all__ = ["MemoryPart", "Plan", "plan_run", "plan_text", "sized_model", "training_memory"]
