"""The planner: what a run will need, before it runs. `command` has the flags, `plan` the plan."""
